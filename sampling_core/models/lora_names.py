"""How files of LoRAs call the layers of a model: as diffusers and PEFT do, as kohya does, and by their first names.

kohya's names have underscores in the place of dots. First names are those of the code that a family was published with:
Stability's `ldm` for UNets, and for transformers what single files have, where several layers of diffusers are one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.models.tensor_info import Order, Weights

_TEXT_ENCODERS = {
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
    "text_encoder_3": ("lora_te3_",),
}
"""kohya's prefixes, by diffusers' folder of the network. `lora_te_` is of a model with one text encoder."""
_T5 = "lora_te3_"
"""kohya's prefix of T5, also where it is the second text encoder."""
_DOTTED = ("transformer.", "diffusion_model.", "base_model.model.", "")
"""Of a transformer: diffusers', ComfyUI's, and PEFT's for a network that is saved alone."""
_UNDERSCORED = ("lora_unet_", "lora_transformer_")
"""Of a transformer: kohya's, whatever the network is, and OneTrainer's."""

_OUTSIDE = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
_OF_RESNETS = {
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_IN_BLOCK = re.compile(r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)")
_IN_MIDDLE = re.compile(r"mid_block_(resnets|attentions)_(\d+)_(.+)")


class LayerRows(NamedTuple):
    """A layer of a network, as a matrix of a file has it: as some of its rows, if several layers are one there."""

    layer: str
    rows: tuple[int, int] | None = None
    order: Order = "as stored"


LayersByName = Mapping[str, tuple[LayerRows, ...]]
"""The layers that each name of a file stands for, in the order of their rows."""


def layer_names(folder: str, layers: Collection[str], first_layers: Weights) -> LayersByName:
    """The layers of one network by all names that files have for them. `folder` is diffusers' name of the network.

    `layers` are named without the prefix `text_model.` of text encoders. `first_layers` are what a transformer's layers
    are in a file of its first release: the name and the rows of a matrix there, by diffusers' name of the weight.
    """
    if folder == "unet":
        return _unet_names(layers)
    return _transformer_names(layers, first_layers) if folder == "transformer" else _encoder_names(folder, layers)


def _unet_names(layers: Collection[str]) -> LayersByName:
    flat = {layer.replace(".", "_"): layer for layer in layers}
    levels = _Levels.of(flat)
    spellings = {
        layer: (f"unet.{layer}", f"lora_unet_{name}", f"lora_unet_{_ldm_name(name, levels)}")
        for name, layer in flat.items()
    }
    return {name: (LayerRows(layer),) for layer, names in spellings.items() for name in names}


def _encoder_names(folder: str, layers: Collection[str]) -> LayersByName:
    layers_by_name: dict[str, tuple[LayerRows, ...]] = {}
    for layer in layers:
        # CLIP's are all inside of its `text_model`, but for the projection.
        inner = "text_model." if layer.startswith("encoder.layers.") else ""
        prefixes = {*_TEXT_ENCODERS[folder], *([_T5] if layer.startswith("encoder.block.") else [])}
        names = [f"{folder}.{layer}", f"{folder}.{inner}{layer}"]
        names += [prefix + (inner + layer).replace(".", "_") for prefix in prefixes]
        layers_by_name |= dict.fromkeys(names, (LayerRows(layer),))
    return layers_by_name


def _transformer_names(layers: Collection[str], first_layers: Weights) -> LayersByName:
    parts: dict[str, list[LayerRows]] = {}
    for weight, info in first_layers.items():
        parts.setdefault(info.name, []).append(LayerRows(weight.removesuffix(".weight"), info.rows, info.order))
    # A layer that this network lacks, such as the input for guidance.
    first = {name: tuple(parts) for name, parts in parts.items() if all(part.layer in layers for part in parts)}
    names = first | {layer: (LayerRows(layer),) for layer in layers}
    dotted = {prefix + name: parts for prefix in _DOTTED for name, parts in names.items()}
    underscored = {prefix + name.replace(".", "_"): parts for prefix in _UNDERSCORED for name, parts in names.items()}
    return dotted | underscored


class _Levels(NamedTuple):
    """Of a UNet: residual layers of each level on the way down, and the levels with attention on the way up."""

    layers: int
    with_attention: frozenset[str]

    @classmethod
    def of(cls, names: Collection[str]) -> _Levels:
        blocks = [match.groups() for match in map(_IN_BLOCK.fullmatch, names) if match]
        return cls(
            len({number for side, level, kind, number, _ in blocks if (side, level, kind) == ("down", "0", "resnets")}),
            frozenset(level for side, level, kind, _, _ in blocks if (side, kind) == ("up", "attentions")),
        )


def _ldm_name(name: str, levels: _Levels) -> str:
    """A layer of a UNet as Stability's code (`ldm`) calls it, which numbers all blocks in one sequence."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    if middle := _IN_MIDDLE.fullmatch(name):
        kind, number, rest = middle.groups()
        return f"middle_block_{1 if kind == 'attentions' else 2 * int(number)}_{_OF_RESNETS.get(rest, rest)}"
    block = _IN_BLOCK.fullmatch(name)
    if block is None:
        return name
    direction, level, kind, number, rest = block.groups()
    # On the way up, a level has one layer more, and no place of its own for the step to the next level.
    first = int(level) * (levels.layers + 1) + (1 if direction == "down" else 0)
    match kind:
        case "downsamplers":
            return f"input_blocks_{first + levels.layers}_0_op"
        case "upsamplers":
            return f"output_blocks_{first + levels.layers}_{2 if level in levels.with_attention else 1}_{rest}"
        case _:
            side, part = ("input" if direction == "down" else "output"), (1 if kind == "attentions" else 0)
            return f"{side}_blocks_{first + int(number)}_{part}_{_OF_RESNETS.get(rest, rest)}"
