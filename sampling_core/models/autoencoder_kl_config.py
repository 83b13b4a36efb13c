"""The configuration of diffusers' AutoencoderKL, and the affine map from its latents to model space."""

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
    PixelCount,
    Shape,
    Width,
    check_levels,
)
from prefect_regional_diffusion.sampling_core.models.latent_affine import LatentAffine

_OLD_ATTENTION_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


WITHOUT_MEAN: Mapping[str, object] = {"latents_mean": None, "latents_std": None}
WITHOUT_SHIFT: Mapping[str, object] = {"shift_factor": None}
"""For `ONLY` of a family whose pipeline does not look at these."""


class AutoencoderKL(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": "AutoencoderKL"}
    NOTES: ClassVar[frozenset[str]] = OF_DIFFUSERS

    block_out_channels: PerLevel
    latent_channels: Width
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: Annotated[list[Literal["DownEncoderBlock2D"]], Field(min_length=1, max_length=8)]
    up_block_types: Annotated[list[Literal["UpDecoderBlock2D"]], Field(min_length=1, max_length=8)]
    layers_per_block: Layers = 1
    act_fn: Activation = "silu"
    norm_num_groups: Width = 32
    sample_size: PixelCount = 32
    scaling_factor: Annotated[float, Field(gt=1e-3, lt=1e3)] = 0.18215
    shift_factor: Annotated[float, Field(ge=-1e3, le=1e3)] | None = None
    latents_mean: Annotated[list[Annotated[float, Field(ge=-1e3, le=1e3)]], Field(max_length=256)] | None = None
    latents_std: Annotated[list[Annotated[float, Field(gt=1e-3, lt=1e3)]], Field(max_length=256)] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def _lists_fit(self) -> AutoencoderKL:
        check_levels(len(self.block_out_channels), self.down_block_types, self.up_block_types)
        if any(values and len(values) != self.latent_channels for values in (self.latents_mean, self.latents_std)):
            raise ValueError(f"latents_mean and latents_std of {self.latent_channels} numbers each, one for a channel")
        return self

    @property
    def latent_affine(self) -> LatentAffine:
        """The map from its latents to model space: a factor and a shift, or a mean and a deviation per channel."""
        if self.latents_mean and self.latents_std:
            scale = tuple(self.scaling_factor / deviation for deviation in self.latents_std)
            return LatentAffine(scale, tuple(self.latents_mean))
        return LatentAffine((self.scaling_factor,), (self.shift_factor or 0.0,))

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, in each direction."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def least_tensors(self) -> int:
        return 8 * self.layers_per_block * len(self.block_out_channels)

    def edges(self) -> dict[str, Shape]:
        first, last = self.block_out_channels[0], self.block_out_channels[-1]
        return {
            "encoder.conv_in.weight": (first, 3, 3, 3),
            "decoder.conv_in.weight": (last, self.latent_channels, 3, 3),
            "decoder.conv_out.weight": (3, first, 3, 3),
        }

    @staticmethod
    def canonical_name(name: str) -> str:
        """The first releases had other names for attention, which diffusers converts too when it loads."""
        for old, new in _OLD_ATTENTION_NAMES.items():
            name = name.replace(old, new)
        return name


def autoencoder_network(configuration: AutoencoderKL) -> Any:
    """The network, with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as Network

    return Network(**configuration.model_dump())


AUTOENCODER_KL = Component(Class("diffusers", ("AutoencoderKL",)), DIFFUSERS_STEM, AutoencoderKL, autoencoder_network)
