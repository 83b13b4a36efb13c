"""The autoencoder of CompVis' and Stability's files: levels are counted from the finest one, in the decoder as well."""

from __future__ import annotations

import re
from typing import Any

from prefect_regional_diffusion.sampling_core.models.single_file.tensors import (
    Tensors,
    axis,
    below,
    linear,
    numbered,
    replaced,
)
from prefect_regional_diffusion.sampling_core.models.stored import Weights

PREFIX = "first_stage_model."
_OF_TRAINING = ("loss.", "model_ema.")
_HALF = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "norm_out": "conv_norm_out",
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_DOWN = re.compile(r"down\.(\d{1,3})\.(block\.(\d{1,3})|downsample)\.(.+)")
_UP = re.compile(r"up\.(\d{1,3})\.(block\.(\d{1,3})|upsample)\.(.+)")


def vae_weights(file: Tensors) -> Weights:
    """The tensors by the names that diffusers has for them."""
    tensors = {name: stored for name, stored in below(file, PREFIX).items() if not name.startswith(_OF_TRAINING)}
    levels = numbered(tensors, "decoder.up.")
    named = {_named(name, levels): stored for name, stored in tensors.items()}
    return {name: linear(stored) if ".attentions." in name else stored for name, stored in named.items()}


def vae_configuration(file: Tensors) -> dict[str, Any]:
    """What the tensors' shapes say of a configuration, in its keys."""
    weights = vae_weights(file)
    levels = numbered(weights, "encoder.down_blocks.")
    last = [f"encoder.down_blocks.{level}.resnets.0.conv2.weight" for level in range(levels)]
    return {
        "block_out_channels": [axis(weights, name, 0) for name in last],
        "latent_channels": axis(weights, "decoder.conv_in.weight", 1),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": numbered(weights, "encoder.down_blocks.0.resnets."),
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
        "mid_block_add_attention": any(name.startswith("encoder.mid_block.attentions.") for name in weights),
    }


def _named(name: str, levels: int) -> str:
    half, _, inside = name.partition(".")
    if half not in ("encoder", "decoder"):
        return name
    if found := _DOWN.fullmatch(inside):
        place = f"down_blocks.{int(found[1])}."
        inside = place + (f"resnets.{found[3]}.{found[4]}" if found[3] else f"downsamplers.0.{found[4]}")
    elif found := _UP.fullmatch(inside):
        place = f"up_blocks.{levels - 1 - int(found[1])}."
        inside = place + (f"resnets.{found[3]}.{found[4]}" if found[3] else f"upsamplers.0.{found[4]}")
    inside = replaced(inside, _HALF).replace("nin_shortcut", "conv_shortcut")
    before, attention, within = inside.partition("attentions.0.")
    return f"{half}.{before}{attention}{replaced(within, _ATTENTION)}" if attention else f"{half}.{inside}"
