"""The configuration of diffusers' UNet of Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from prefect_regional_diffusion.sampling_core.models.component import DIFFUSERS_STEM, Class, Component
from prefect_regional_diffusion.sampling_core.models.configurations import (
    OF_DIFFUSERS,
    Activation,
    Kernel,
    Layers,
    NetworkConfiguration,
    PerLevel,
    PixelCount,
    Positive,
    Shape,
    Share,
    Width,
    check_levels,
)


class UNet2DConditionModel(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {
        "_class_name": "UNet2DConditionModel",
        # Each of these needs an input that no supported family has.
        "attention_type": "default",
        "class_embeddings_concat": False,
        "time_cond_proj_dim": None,
        "time_embedding_type": "positional",
    }
    NOTES: ClassVar[frozenset[str]] = OF_DIFFUSERS | {"addition_embed_type_num_heads"}

    sample_size: PixelCount
    in_channels: Width
    out_channels: Width
    block_out_channels: PerLevel
    down_block_types: Annotated[list[Literal["CrossAttnDownBlock2D", "DownBlock2D"]], Field(min_length=1, max_length=8)]
    up_block_types: Annotated[list[Literal["CrossAttnUpBlock2D", "UpBlock2D"]], Field(min_length=1, max_length=8)]
    layers_per_block: Layers | Annotated[list[Layers], Field(max_length=8)]
    cross_attention_dim: Width | PerLevel
    attention_head_dim: Width | PerLevel
    mid_block_type: Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"] | None = "UNetMidBlock2DCrossAttn"
    mid_block_only_cross_attention: bool | None = None
    mid_block_scale_factor: Positive = 1
    transformer_layers_per_block: Layers | Annotated[list[Layers], Field(max_length=8)] = 1
    reverse_transformer_layers_per_block: None = None
    only_cross_attention: bool | Annotated[list[bool], Field(max_length=8)] = False
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    upcast_attention: bool | None = False
    cross_attention_norm: None = None
    num_attention_heads: None = None
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[int, Field(ge=0, le=1)] = 0
    downsample_padding: Literal[0, 1] = 1
    act_fn: Activation = "silu"
    norm_num_groups: Width = 32
    norm_eps: Share = 1e-5
    dropout: Share = 0.0
    conv_in_kernel: Kernel = 3
    conv_out_kernel: Kernel = 3
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: Positive = 1.0
    time_embedding_dim: Width | None = None
    time_embedding_act_fn: Activation | None = None
    timestep_post_act: Activation | None = None
    class_embed_type: None = None
    num_class_embeds: None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: Width | None = None
    projection_class_embeddings_input_dim: Width | None = None

    @model_validator(mode="after")
    def _lists_fit_levels(self) -> UNet2DConditionModel:
        """Whatever is given for each level is given for all of them."""
        check_levels(
            len(self.block_out_channels),
            *(self.down_block_types, self.up_block_types, self.layers_per_block, self.cross_attention_dim),
            *(self.attention_head_dim, self.transformer_layers_per_block, self.only_cross_attention),
        )
        return self

    @property
    def least_tensors(self) -> int:
        levels = len(self.block_out_channels)
        layers = _per_level(self.layers_per_block, levels)
        transformers = _per_level(self.transformer_layers_per_block, levels)
        has_attention = ["CrossAttn" in kind for kind in self.down_block_types]
        return sum(
            layer * (10 + 20 * transformer * attention)
            for layer, transformer, attention in zip(layers, transformers, has_attention, strict=False)
        )

    def edges(self) -> dict[str, Shape]:
        first, kernel = self.block_out_channels[0], self.conv_in_kernel
        return {
            "conv_in.weight": (first, self.in_channels, kernel, kernel),
            "conv_out.weight": (self.out_channels, first, self.conv_out_kernel, self.conv_out_kernel),
        }


WITHOUT_ADDITIONS: Mapping[str, object] = dict.fromkeys(
    ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
)
"""For `ONLY` of a family whose networks have no inputs but the latent, the prompt and the timestep."""


def unet_network(configuration: UNet2DConditionModel) -> Any:
    """The network, with random weights."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as Network

    return Network(**configuration.model_dump())


UNET = Component(Class("diffusers", ("UNet2DConditionModel",)), DIFFUSERS_STEM, UNet2DConditionModel, unet_network)


def _per_level(value: int | list[int], levels: int) -> list[int]:
    return [value] * levels if isinstance(value, int) else value
