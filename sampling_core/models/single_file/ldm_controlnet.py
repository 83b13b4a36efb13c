"""ControlNets of the first release (`cldm.py`): its names of the UNet's encoder, and of what is added to that."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.models.single_file.ldm_unet import diffusers_names
from prefect_regional_diffusion.sampling_core.models.single_file.tensors import Tensors, below, num_blocks
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights

ORIGINAL = "control_model."
"""How the names of the first release begin."""

_HINT = "input_hint_block"
_HINT_CONVOLUTIONS = ("conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out")
"""Of diffusers' `controlnet_cond_embedding`, in the order of the first release, where every other layer has weights."""


def controlnet_weights(file: Tensors) -> Weights:
    """The tensors by the names that diffusers has for them; one that is not known keeps its own."""
    tensors = below(file, ORIGINAL)
    places = {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in range(num_blocks(tensors, "zero_convs."))}
    places["middle_block_out.0"] = "controlnet_mid_block"
    for i, name in enumerate(_HINT_CONVOLUTIONS):
        places[f"{_HINT}.{2 * i}"] = f"controlnet_cond_embedding.{name}"
    names = diffusers_names(tensors, places)
    return {names[name]: info for name, info in tensors.items()}


def hint_channels(weights: Weights) -> list[int]:
    """Channels of the levels of a ControlNet's convolutions over its picture, from tensors of diffusers' names."""
    prefix = "controlnet_cond_embedding."
    levels = num_blocks(weights, f"{prefix}blocks.") // 2
    names = ["conv_in.weight", *(f"blocks.{2 * i + 1}.weight" for i in range(levels))]
    return [weights[prefix + name].shape[0] for name in names if prefix + name in weights]
