"""The transformer of Black Forest Labs' files of FLUX.1: queries, keys and values are one matrix, in single blocks with
what is computed beside them."""

from __future__ import annotations

import re
from typing import Any

from prefect_regional_diffusion.sampling_core.models.single_file.tensors import (
    Tensors,
    axis,
    below,
    end_swapped,
    length,
    num_blocks,
    placed_layers,
    replaced,
    rows,
    share,
)
from prefect_regional_diffusion.sampling_core.models.tensor_info import TensorInfo, Weights

PREFIX = "model.diffusion_model."
FIRST = f"{PREFIX}img_in."
"""What each of these files has."""
BLOCKS = "double_blocks."

_AXES = {128: [16, 56, 56]}
"""Features of a head that tell pictures, rows and columns apart, by their number: as published, no shape says it."""
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_SINGLE = {
    "modulation.lin": "norm.linear",
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
    "linear2": "proj_out",
}
_BLOCK = re.compile(r"(double|single)_blocks\.(\d{1,4})\.(.+)")
_FUSED = re.compile(r"(img|txt)_attn\.qkv\.(.+)")
_ATTENDS = {"img": "attn.to_{}", "txt": "attn.add_{}_proj"}


def flux_weights(file: Tensors) -> Weights:
    """The tensors by the names that diffusers has for them; one that is in no block keeps its own."""
    tensors = below(file, PREFIX)
    width = axis(tensors, "img_in.weight", 0)
    weights: Weights = {}
    for name, info in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            weights[replaced(name, _OUTSIDE)] = end_swapped(name, info)
        elif block[1] == "double":
            place, inside = f"transformer_blocks.{block[2]}", block[3]
            if fused := _FUSED.fullmatch(inside):
                for index, letter in enumerate("qkv"):
                    weights[f"{place}.{_ATTENDS[fused[1]].format(letter)}.{fused[2]}"] = share(info, index, 3)
            else:
                weights[f"{place}.{replaced(inside, _DOUBLE)}"] = info
        else:
            weights |= _single_block_weights(f"single_transformer_blocks.{block[2]}", block[3], info, width)
    return weights


def _single_block_weights(place: str, inside: str, info: TensorInfo, width: int) -> Weights:
    """What one tensor of a single block is there."""
    layer, _, kind = inside.rpartition(".")
    if layer != "linear1":
        return {f"{place}.{replaced(inside, _SINGLE)}": info}
    weights = {
        f"{place}.attn.to_{letter}.{kind}": rows(info, i * width, (i + 1) * width) for i, letter in enumerate("qkv")
    }
    return weights | {f"{place}.proj_mlp.{kind}": rows(info, 3 * width, length(info))}


def flux_layers(network: Weights) -> Weights:
    """Where their file has the layers of diffusers' transformer with these weights: see `placed_layers`."""
    width = axis(network, "x_embedder.weight", 0)
    beside = axis(network, "single_transformer_blocks.0.proj_mlp.weight", 0)
    double = dict.fromkeys(_DOUBLE, 0) | {"img_attn.qkv": 3 * width, "txt_attn.qkv": 3 * width}
    single = dict.fromkeys(_SINGLE, 0) | {"linear1": 3 * width + beside}
    lengths = dict.fromkeys(_OUTSIDE, 0) | {"img_in": width}
    for i in range(num_blocks(network, "transformer_blocks.")):
        lengths |= {f"double_blocks.{i}.{layer}": length for layer, length in double.items()}
    for i in range(num_blocks(network, "single_transformer_blocks.")):
        lengths |= {f"single_blocks.{i}.{layer}": length for layer, length in single.items()}
    return placed_layers(lengths, PREFIX, flux_weights)


def flux_configuration(file: Tensors) -> dict[str, Any]:
    """What the tensors' shapes say of a configuration, in its keys."""
    weights = flux_weights(file)
    head = axis(weights, "transformer_blocks.0.attn.norm_q.weight", 0)
    configuration: dict[str, Any] = {
        "in_channels": axis(weights, "x_embedder.weight", 1),
        "out_channels": axis(weights, "proj_out.weight", 0),
        "num_layers": num_blocks(weights, "transformer_blocks."),
        "num_single_layers": num_blocks(weights, "single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": axis(weights, "x_embedder.weight", 0) // max(1, head),
        "joint_attention_dim": axis(weights, "context_embedder.weight", 1),
        "pooled_projection_dim": axis(weights, "time_text_embed.text_embedder.linear_1.weight", 1),
        "guidance_embeds": has_guidance_input(file),
    }
    return configuration | ({"axes_dims_rope": _AXES[head]} if head in _AXES else {})


def has_guidance_input(file: Tensors) -> bool:
    """Whether it is dev, which takes the guidance scale as an input."""
    return any(name.startswith(f"{PREFIX}guidance_in.") for name in file)
