"""How files of LoRAs call the layers of a model: as diffusers and PEFT do, as kohya does, and by SDXL's first names."""

from __future__ import annotations

import re
from collections.abc import Collection

_PREFIXES = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
"""kohya's, by diffusers' folder of the network. `lora_te_` is of a model with one text encoder."""

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


def layer_names(folder: str, layers: Collection[str]) -> dict[str, str]:
    """The layers of one network by all names that files have for them. `folder` is diffusers' name of the network.

    `layers` are named without the prefix `text_model.` of text encoders.
    """
    layer_of_name: dict[str, str] = {}
    unet = folder == "unet"
    flat = {layer.replace(".", "_"): layer for layer in layers}
    for name, layer in flat.items():
        inner = "" if unet or layer == "text_projection" else "text_model_"
        spellings = [f"{folder}.{layer}", f"{folder}.text_model.{layer}"]
        spellings += [f"{prefix}{inner}{name}" for prefix in _PREFIXES.get(folder, ())]
        if unet:
            spellings.append(f"lora_unet_{_ldm_name(name, flat)}")
        layer_of_name |= dict.fromkeys(spellings, layer)
    return layer_of_name


def _ldm_name(name: str, flat: Collection[str]) -> str:
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
    layers = len({other.split("_")[4] for other in flat if other.startswith("down_blocks_0_resnets_")})
    first = int(level) * (layers + 1) + (1 if direction == "down" else 0)
    match kind:
        case "downsamplers":
            return f"input_blocks_{first + layers}_0_op"
        case "upsamplers":
            has_attention = any(other.startswith(f"up_blocks_{level}_attentions_") for other in flat)
            return f"output_blocks_{first + layers}_{2 if has_attention else 1}_{rest}"
        case _:
            side, part = ("input" if direction == "down" else "output"), (1 if kind == "attentions" else 0)
            return f"{side}_blocks_{first + int(number)}_{part}_{_OF_RESNETS.get(rest, rest)}"
