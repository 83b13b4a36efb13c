"""The transformer of Stability's files of Stable Diffusion 3 and 3.5 (MMDiT): queries, keys, values are one matrix."""

from __future__ import annotations

import re
from math import isqrt
from typing import Any

from prefect_regional_diffusion.sampling_core.models.single_file.tensors import (
    Tensors,
    axis,
    below,
    end_swapped,
    num_blocks,
    placed_layers,
    replaced,
    share,
    swapped,
)
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights

PREFIX = "model.diffusion_model."
FIRST = f"{PREFIX}x_embedder."
"""What each of these files has."""
BLOCKS = "joint_blocks."

_HEAD_WIDTH = 64
"""Features of a head, in every published Stable Diffusion 3."""
_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "pos_embed": "pos_embed.pos_embed",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_PICTURE = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.ln_q": "attn.norm_q",
    "attn.ln_k": "attn.norm_k",
    "attn.proj": "attn.to_out.0",
    "attn2.ln_q": "attn2.norm_q",
    "attn2.ln_k": "attn2.norm_k",
    "attn2.proj": "attn2.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
_TEXT = {
    "adaLN_modulation.1": "norm1_context.linear",
    "attn.ln_q": "attn.norm_added_q",
    "attn.ln_k": "attn.norm_added_k",
    "attn.proj": "attn.to_add_out",
    "mlp.fc1": "ff_context.net.0.proj",
    "mlp.fc2": "ff_context.net.2",
}
_HALVES = {"x_block": (_PICTURE, "to_{}"), "context_block": (_TEXT, "add_{}_proj")}
"""The two halves of a block: what is in them, and what its queries, keys and values are called."""
_BLOCK = re.compile(r"joint_blocks\.(\d{1,4})\.(x_block|context_block)\.(.+)")
_BOTH = re.compile(r"transformer_blocks\.(\d{1,4})\.attn2\.")
"""Blocks in which a picture's tokens attend to each other once more."""
_FUSED = re.compile(r"(attn2?)\.qkv\.(.+)")


def mmdit_weights(file: Tensors) -> Weights:
    """The tensors by the names that diffusers has for them; one that is in no block keeps its own."""
    tensors = below(file, PREFIX)
    last = num_blocks(tensors, BLOCKS) - 1
    weights: Weights = {}
    for name, info in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            weights[replaced(name, _OUTSIDE)] = end_swapped(name, info)
            continue
        number, (names, projection), inside = int(block[1]), _HALVES[block[2]], block[3]
        place = f"transformer_blocks.{number}"
        if fused := _FUSED.fullmatch(inside):
            for index, letter in enumerate("qkv"):
                weights[f"{place}.{fused[1]}.{projection.format(letter)}.{fused[2]}"] = share(info, index, 3)
            continue
        # The last block reads the text and does not change it, so that its modulation is as that of the end.
        swap_halves = block[2] == "context_block" and number == last and inside.startswith("adaLN_modulation.")
        weights[f"{place}.{replaced(inside, names)}"] = swapped(info) if swap_halves else info
    return weights


def mmdit_layers(network: Weights) -> Weights:
    """Where Stability's file has the layers of diffusers' transformer with these weights: see `placed_layers`."""
    width = axis(network, "pos_embed.proj.weight", 0)
    picture = dict.fromkeys(_PICTURE, 0) | {"attn.qkv": 3 * width, "attn2.qkv": 3 * width}
    text = dict.fromkeys(_TEXT, 0) | {"attn.qkv": 3 * width}
    lengths = dict.fromkeys(_OUTSIDE, 0)
    for i in range(num_blocks(network, "transformer_blocks.")):
        lengths |= {f"{BLOCKS}{i}.x_block.{layer}": length for layer, length in picture.items()}
        lengths |= {f"{BLOCKS}{i}.context_block.{layer}": length for layer, length in text.items()}
    return placed_layers(lengths, PREFIX, mmdit_weights)


def mmdit_configuration(file: Tensors) -> dict[str, Any]:
    """What the tensors' shapes say of a configuration, in its keys."""
    weights = mmdit_weights(file)
    layers = num_blocks(weights, "transformer_blocks.")
    width, patch = (axis(weights, "pos_embed.proj.weight", dim) for dim in (0, 2))
    norm_width = axis(weights, "transformer_blocks.0.attn.norm_q.weight", 0)
    head = norm_width or _HEAD_WIDTH
    dual_blocks = {int(match[1]) for name in weights if (match := _BOTH.match(name))}
    return {
        "patch_size": patch,
        "in_channels": axis(weights, "pos_embed.proj.weight", 1),
        "out_channels": axis(weights, "proj_out.weight", 0) // max(1, patch * patch),
        "num_layers": layers,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": axis(weights, "context_embedder.weight", 1),
        "caption_projection_dim": axis(weights, "context_embedder.weight", 0),
        "pooled_projection_dim": axis(weights, "time_text_embed.text_embedder.linear_1.weight", 1),
        "pos_embed_max_size": isqrt(axis(weights, "pos_embed.pos_embed", 1)),
        "dual_attention_layers": sorted(dual_blocks),
        "qk_norm": "rms_norm" if norm_width else None,
    }
