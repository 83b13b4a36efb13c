"""ControlNet (Zhang et al. 2023): a copy of a UNet's encoder that reads a picture, too, and is added to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from prefect_regional_diffusion.sampling_core.models.component import DIFFUSERS_STEM, Class, Component
from prefect_regional_diffusion.sampling_core.models.configurations import (
    OF_DIFFUSERS,
    Activation,
    Layers,
    NetworkConfiguration,
    PerLevel,
    Positive,
    Shape,
    Share,
    Width,
    check_levels,
)
from prefect_regional_diffusion.sampling_core.models.unet_config import UNet2DConditionModel


class ControlNetModel(NetworkConfiguration):
    """Keys that are left out here need inputs that no supported family has, or are of ControlNets for several kinds."""

    ONLY: ClassVar[Mapping[str, object]] = {
        "_class_name": "ControlNetModel",
        "conditioning_channels": 3,
        # Its residuals would be one number for a whole picture, and of the positive prompt's rows alone.
        "global_pool_conditions": False,
    }
    NOTES: ClassVar[frozenset[str]] = OF_DIFFUSERS | {"addition_embed_type_num_heads"}

    in_channels: Width = 4
    block_out_channels: PerLevel
    conditioning_embedding_out_channels: PerLevel
    down_block_types: Annotated[list[Literal["CrossAttnDownBlock2D", "DownBlock2D"]], Field(min_length=1, max_length=8)]
    layers_per_block: Layers = 2
    cross_attention_dim: Width = 1280
    attention_head_dim: Width | PerLevel = 8
    mid_block_type: Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"] = "UNetMidBlock2DCrossAttn"
    mid_block_scale_factor: Positive = 1
    transformer_layers_per_block: Layers | Annotated[list[Layers], Field(max_length=8)] = 1
    only_cross_attention: bool | Annotated[list[bool], Field(max_length=8)] = False
    use_linear_projection: bool = False
    upcast_attention: bool = False
    num_attention_heads: None = None
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[int, Field(ge=0, le=1)] = 0
    downsample_padding: Literal[0, 1] = 1
    act_fn: Activation = "silu"
    norm_num_groups: Width = 32
    norm_eps: Share = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    class_embed_type: None = None
    num_class_embeds: None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: Width | None = None
    projection_class_embeddings_input_dim: Width | None = None
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = "rgb"

    @model_validator(mode="after")
    def _lists_fit_levels(self) -> ControlNetModel:
        """Whatever is given for each level is given for all of them."""
        check_levels(
            len(self.block_out_channels),
            *(self.down_block_types, self.attention_head_dim),
            *(self.transformer_layers_per_block, self.only_cross_attention),
        )
        return self

    @property
    def least_tensors(self) -> int:
        return 10 * self.layers_per_block * len(self.block_out_channels)

    def edges(self) -> dict[str, Shape]:
        first, last = self.block_out_channels[0], self.block_out_channels[-1]
        return {
            "conv_in.weight": (first, self.in_channels, 3, 3),
            "controlnet_mid_block.weight": (last, last, 1, 1),
        }

    @property
    def pixels_of_a_cell(self) -> int:
        """Edge of what becomes one latent cell of the picture that it reads."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)

    def mismatch_with(self, unet: UNet2DConditionModel) -> str:
        """How it differs from a UNet that it is to be added to; empty if it fits.

        It may have other blocks inside, as the small ones of SDXL do: what is added has the shapes that these say.
        """
        levels = len(unet.block_out_channels)
        unet_values: dict[str, object] = {
            "in_channels": unet.in_channels,
            "cross_attention_dim": unet.cross_attention_dim,
            "block_out_channels": unet.block_out_channels,
            "layers_per_block": unet.layers_per_block,
            "addition_embed_type": unet.addition_embed_type,
            "addition_time_embed_dim": unet.addition_time_embed_dim,
            "projection_class_embeddings_input_dim": unet.projection_class_embeddings_input_dim,
        }
        for key, unet_value in unet_values.items():
            value = getattr(self, key)
            if unet_value not in (value, [value] * levels):
                return f"{key} {value}, not {unet_value}"
        return ""


def configuration_from_unet(unet: UNet2DConditionModel, hint_channels: list[int]) -> dict[str, Any]:
    """The configuration of a ControlNet that was made from this UNet, in its keys: most are the UNet's own."""
    unet_values = unet.model_dump(include=set(ControlNetModel.model_fields))
    stated_values = {key: value for key, value in unet_values.items() if value is not None}
    return stated_values | {"conditioning_embedding_out_channels": hint_channels}


def controlnet(configuration: ControlNetModel) -> Any:
    """The network, with random weights."""
    from diffusers.models.controlnets.controlnet import ControlNetModel as Network

    return Network(**configuration.model_dump())


CONTROLNET = Component(Class("diffusers", ("ControlNetModel",)), DIFFUSERS_STEM, ControlNetModel, controlnet)
