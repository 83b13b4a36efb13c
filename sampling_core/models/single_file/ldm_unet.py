"""The UNet of CompVis' and Stability's files (`openaimodel.py`): numbered blocks, from which the levels follow."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from prefect_regional_diffusion.sampling_core.models.single_file.tensors import (
    Tensors,
    axis,
    below,
    num_blocks,
    replaced,
)
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights

PREFIX = "model.diffusion_model."
FIRST = f"{PREFIX}input_blocks.0.0.weight"
"""The tensor that each of these files has."""

_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def unet_weights(file: Tensors) -> Weights:
    """The tensors by the names that diffusers has for them; one that is in no block keeps its own."""
    tensors = below(file, PREFIX)
    names = diffusers_names(tensors)
    return {names[name]: info for name, info in tensors.items()}


def diffusers_names(tensors: Tensors, others: Mapping[str, str] | None = None) -> dict[str, str]:
    """diffusers' names of tensors by their own: of those in a UNet's blocks or in `others`; the rest keep theirs."""
    places = _block_names(tensors) | dict(others or {})
    return {name: _diffusers_name(name, places) for name in tensors}


def unet_configuration(file: Tensors) -> dict[str, Any]:
    """What the tensors' shapes say of a configuration, in its keys. Not what is counted in heads and groups."""
    weights = unet_weights(file)
    levels = num_blocks(weights, "down_blocks.")
    has_attention = [num_blocks(weights, f"down_blocks.{level}.attentions.") > 0 for level in range(levels)]
    layers = [num_blocks(weights, f"down_blocks.{level}.resnets.") for level in range(levels)]
    depths = [
        max(1, num_blocks(weights, f"down_blocks.{level}.attentions.0.transformer_blocks.")) for level in range(levels)
    ]
    if levels and not has_attention[-1]:
        # It counts for the middle, which the list of depths has no number for.
        depths[-1] = max(1, num_blocks(weights, "mid_block.attentions.0.transformer_blocks."))
    inner = [name for name in weights if name.endswith("attentions.0.proj_in.weight")]
    cross = [axis(weights, name, 1) for name in weights if name.endswith("attn2.to_k.weight")]
    configuration: dict[str, Any] = {
        "in_channels": axis(weights, "conv_in.weight", 1),
        "out_channels": axis(weights, "conv_out.weight", 0),
        "block_out_channels": [
            axis(weights, f"down_blocks.{level}.resnets.0.conv2.weight", 0) for level in range(levels)
        ],
        "down_block_types": ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in has_attention],
        "up_block_types": ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(has_attention)],
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "cross_attention_dim": max(cross, default=0),
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        # As a convolution of kernel 1, which counts as many numbers, it has two more axes.
        "use_linear_projection": any(len(weights[name].shape) == 2 for name in inner),
    }
    if "add_embedding.linear_1.weight" in weights:
        configuration["addition_embed_type"] = "text_time"
        configuration["projection_class_embeddings_input_dim"] = prod(
            weights["add_embedding.linear_1.weight"].shape[1:]
        )
    return configuration


def _block_names(tensors: Tensors) -> dict[str, str]:
    """The numbered blocks, each a ResNet, an attention or a change of size: what diffusers calls them."""
    parts = {".".join(name.split(".")[:3]) for name in tensors}
    names: dict[str, str] = {}
    level = layer = 0
    for block in range(1, num_blocks(tensors, "input_blocks.")):
        if any(name.startswith(f"input_blocks.{block}.0.op.") for name in tensors):
            names[f"input_blocks.{block}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            level, layer = level + 1, 0
            continue
        names[f"input_blocks.{block}.0"] = f"down_blocks.{level}.resnets.{layer}"
        names[f"input_blocks.{block}.1"] = f"down_blocks.{level}.attentions.{layer}"
        layer += 1
    level = layer = 0
    for block in range(num_blocks(tensors, "output_blocks.")):
        place = f"output_blocks.{block}"
        names[f"{place}.0"] = f"up_blocks.{level}.resnets.{layer}"
        # The upsampler follows the attention, if there is one.
        upsamplers = [f"{place}.{i}.conv" for i in (1, 2) if f"{place}.{i}.conv.weight" in tensors]
        names |= dict.fromkeys(upsamplers, f"up_blocks.{level}.upsamplers.0.conv")
        if f"{place}.1" in parts:
            names.setdefault(f"{place}.1", f"up_blocks.{level}.attentions.{layer}")
        level, layer = (level + 1, 0) if upsamplers else (level, layer + 1)
    return names


def _diffusers_name(name: str, places: dict[str, str]) -> str:
    outside = replaced(name, _OUTSIDE)
    if outside == name:
        *_, place = sorted((place for place in places if name.startswith(f"{place}.")), key=len) or [""]
        outside = places[place] + name[len(place) :] if place else name
    block, resnets, inside = outside.partition(".resnets.")
    if not resnets:
        return outside
    number, _, inside = inside.partition(".")
    return f"{block}{resnets}{number}.{replaced(inside, _RESNET)}"
