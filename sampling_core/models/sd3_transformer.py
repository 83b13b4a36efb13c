"""diffusers' transformer of Stable Diffusion 3 (MMDiT, Esser et al. 2024): its configuration, and as a denoiser."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.compiling import uncompiled
from prefect_regional_diffusion.sampling_core.models.component import DIFFUSERS_STEM, Class, Component
from prefect_regional_diffusion.sampling_core.models.conditioning import (
    PLACE,
    POOLED_PROMPT_EMBEDS,
    PROMPT_EMBEDS,
    Conditioning,
)
from prefect_regional_diffusion.sampling_core.models.configurations import (
    OF_DIFFUSERS,
    Count,
    NetworkConfiguration,
    Shape,
    Width,
)
from prefect_regional_diffusion.sampling_core.models.flow_denoiser import FlowDenoiser
from prefect_regional_diffusion.sampling_core.models.joint_attention_rows import biased_sd3_attention, joined_prompts
from prefect_regional_diffusion.sampling_core.models.lora_rows import apply_loras
from prefect_regional_diffusion.sampling_core.models.offloading import computing_device
from prefect_regional_diffusion.sampling_core.models.prompt_rows import pooled
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.tensors.types import Rows


class SD3Transformer2DModel(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": "SD3Transformer2DModel"}
    NOTES: ClassVar[frozenset[str]] = OF_DIFFUSERS

    sample_size: Annotated[int, Field(ge=1, le=1024)] = 128
    patch_size: Annotated[int, Field(ge=1, le=16)] = 2
    in_channels: Width = 16
    out_channels: Width = 16
    num_layers: Count = 18
    attention_head_dim: Width = 64
    num_attention_heads: Width = 18
    joint_attention_dim: Width = 4096
    caption_projection_dim: Width = 1152
    pooled_projection_dim: Width = 2048
    pos_embed_max_size: Annotated[int, Field(ge=1, le=1024)] = 96
    dual_attention_layers: Annotated[list[Annotated[int, Field(ge=0, le=63)]], Field(max_length=64)] = Field(default=[])
    qk_norm: Literal["rms_norm"] | None = None

    @model_validator(mode="after")
    def _widths_fit(self) -> SD3Transformer2DModel:
        if self.caption_projection_dim != self.inner_dim:
            raise ValueError(f"a caption_projection_dim of {self.inner_dim}, as wide as its heads together")
        return self

    @property
    def inner_dim(self) -> int:
        """Features of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def least_tensors(self) -> int:
        return 20 * self.num_layers

    def edges(self) -> dict[str, Shape]:
        inner, patch = self.inner_dim, self.patch_size
        return {
            "pos_embed.pos_embed": (1, self.pos_embed_max_size**2, inner),
            "pos_embed.proj.weight": (inner, self.in_channels, patch, patch),
            "context_embedder.weight": (self.caption_projection_dim, self.joint_attention_dim),
            "proj_out.weight": (patch * patch * self.out_channels, inner),
        }


def sd3_transformer_network(configuration: SD3Transformer2DModel) -> Any:
    """The network, with random weights."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel as Network

    return Network(**configuration.model_dump())


SD3_TRANSFORMER = Component(
    Class("diffusers", ("SD3Transformer2DModel",)), DIFFUSERS_STEM, SD3Transformer2DModel, sd3_transformer_network
)


class SD3Denoiser(FlowDenoiser):
    """Of Stable Diffusion 3, whose network takes latents as they are."""

    def _velocity(self, x: Rows, sigma: Tensor, conditioning: Conditioning, adapters: Sequence[RowAdapters]) -> Tensor:
        dtype, device = self._dtype, computing_device(self._transformer)
        places = conditioning.tensors.get(PLACE)
        loras, shares = [row.loras for row in adapters], [row.prompts for row in adapters]
        plain = uncompiled(self._transformer)
        patch: int = plain.pos_embed.patch_size
        picture = (x.shape[2] // patch) * (x.shape[3] // patch)
        prompts = joined_prompts(conditioning[PROMPT_EMBEDS].to(device, dtype), shares, patch, picture)
        hooked = any(loras) or any(shares) or places is not None
        transformer = plain if hooked else self._transformer
        with (
            apply_loras(plain, loras),
            _at_places(plain.pos_embed, places),
            biased_sd3_attention(plain, prompts.picture_first),
        ):
            return transformer(
                hidden_states=x.to(device, dtype),
                timestep=(sigma.flatten() * 1000).to(device),
                encoder_hidden_states=prompts.tokens,
                pooled_projections=pooled(conditioning[POOLED_PROMPT_EMBEDS].to(device, dtype), shares),
                return_dict=False,
            )[0]


@contextmanager
def _at_places(embedding: Any, places: Tensor | None) -> Generator[None]:
    """Within the block, the tokens of each row have the positions of its part of a canvas, `places` [r, 4] (`PLACE`).

    `embedding` is diffusers' PatchEmbed, which takes every latent for a canvas, and centres it among its positions.
    """
    if places is None:
        yield
        return

    def positions(height: int, width: int) -> Tensor:
        """[r, tokens, features] for latents of so many cells."""
        patch, most = embedding.patch_size, embedding.pos_embed_max_size
        canvas_positions, row_positions = embedding.pos_embed.reshape(most, most, -1), list[Tensor]()
        for top, left, rows, columns in places.tolist():
            row, column = (most - rows // patch) // 2 + top // patch, (most - columns // patch) // 2 + left // patch
            part = canvas_positions[row : row + height // patch, column : column + width // patch]
            row_positions.append(part.flatten(0, 1))
        return torch.stack(row_positions)

    embedding.cropped_pos_embed = positions
    try:
        yield
    finally:
        del embedding.cropped_pos_embed
