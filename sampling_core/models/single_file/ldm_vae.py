"""The autoencoder of CompVis' and Stability's files: levels are counted from the finest one, in the decoder as well."""

from __future__ import annotations

import re
from typing import Any

from prefect_regional_diffusion.sampling_core.models.single_file.tensors import (
    Tensors,
    axis,
    below,
    linear,
    num_blocks,
    replaced,
)
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights

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
    tensors = {name: info for name, info in below(file, PREFIX).items() if not name.startswith(_OF_TRAINING)}
    levels = num_blocks(tensors, "decoder.up.")
    renamed_tensors = {_diffusers_name(name, levels): info for name, info in tensors.items()}
    return {name: linear(info) if ".attentions." in name else info for name, info in renamed_tensors.items()}


def vae_configuration(file: Tensors) -> dict[str, Any]:
    """What the tensors' shapes say of a configuration, in its keys."""
    weights = vae_weights(file)
    levels = num_blocks(weights, "encoder.down_blocks.")
    last = [f"encoder.down_blocks.{level}.resnets.0.conv2.weight" for level in range(levels)]
    return {
        "block_out_channels": [axis(weights, name, 0) for name in last],
        "latent_channels": axis(weights, "decoder.conv_in.weight", 1),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": num_blocks(weights, "encoder.down_blocks.0.resnets."),
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
        "mid_block_add_attention": any(name.startswith("encoder.mid_block.attentions.") for name in weights),
    }


def _diffusers_name(name: str, levels: int) -> str:
    half, _, inside = name.partition(".")
    if half not in ("encoder", "decoder"):
        return name
    if match := _DOWN.fullmatch(inside):
        place = f"down_blocks.{int(match[1])}."
        inside = place + (f"resnets.{match[3]}.{match[4]}" if match[3] else f"downsamplers.0.{match[4]}")
    elif match := _UP.fullmatch(inside):
        place = f"up_blocks.{levels - 1 - int(match[1])}."
        inside = place + (f"resnets.{match[3]}.{match[4]}" if match[3] else f"upsamplers.0.{match[4]}")
    inside = replaced(inside, _HALF).replace("nin_shortcut", "conv_shortcut")
    prefix, attention, within = inside.partition("attentions.0.")
    return f"{half}.{prefix}{attention}{replaced(within, _ATTENTION)}" if attention else f"{half}.{inside}"
