"""diffusers' transformer of FLUX.1: its configuration, and as a denoiser of spatial latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from prefect_regional_diffusion.sampling_core.models.compiling import uncompiled
from prefect_regional_diffusion.sampling_core.models.component import DIFFUSERS_STEM, Class, Component
from prefect_regional_diffusion.sampling_core.models.conditioning import (
    GUIDANCE,
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
from prefect_regional_diffusion.sampling_core.models.ip_adapter_rows import attending_in_flux
from prefect_regional_diffusion.sampling_core.models.joint_attention_rows import joined_prompts
from prefect_regional_diffusion.sampling_core.models.lora_rows import apply_loras
from prefect_regional_diffusion.sampling_core.models.offloading import computing_device
from prefect_regional_diffusion.sampling_core.models.prompt_rows import pooled
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.tensors.types import Rows

PATCH = 2
"""Edge of a token in latent cells."""


class FluxTransformer2DModel(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": "FluxTransformer2DModel", "patch_size": 1}
    NOTES: ClassVar[frozenset[str]] = OF_DIFFUSERS

    in_channels: Annotated[int, Field(ge=4, le=4096, multiple_of=4)] = 64
    out_channels: Width | None = None
    num_layers: Count = 19
    num_single_layers: Count = 38
    attention_head_dim: Width = 128
    num_attention_heads: Width = 24
    joint_attention_dim: Width = 4096
    pooled_projection_dim: Width = 768
    guidance_embeds: bool = False
    axes_dims_rope: Annotated[list[Width], Field(min_length=3, max_length=3)] = Field(default=[16, 56, 56])

    @model_validator(mode="after")
    def _positions_fit(self) -> FluxTransformer2DModel:
        if sum(self.axes_dims_rope) != self.attention_head_dim or any(size % 2 for size in self.axes_dims_rope):
            raise ValueError(f"three even axes_dims_rope whose sum is attention_head_dim, {self.attention_head_dim}")
        return self

    @property
    def inner_dim(self) -> int:
        """Features of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def least_tensors(self) -> int:
        return 20 * self.num_layers + 10 * self.num_single_layers

    def edges(self) -> dict[str, Shape]:
        inner = self.inner_dim
        return {
            "x_embedder.weight": (inner, self.in_channels),
            "context_embedder.weight": (inner, self.joint_attention_dim),
            "proj_out.weight": (self.out_channels or self.in_channels, inner),
        }


def flux_transformer_network(configuration: FluxTransformer2DModel) -> Any:
    """The network, with random weights."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel as Network

    return Network(**configuration.model_dump())


FLUX_TRANSFORMER = Component(
    Class("diffusers", ("FluxTransformer2DModel",)), DIFFUSERS_STEM, FluxTransformer2DModel, flux_transformer_network
)


class FluxDenoiser(FlowDenoiser):
    """Of FLUX.1: latents become tokens, and velocities of tokens those of cells."""

    def _velocity(self, x: Rows, sigma: Tensor, conditioning: Conditioning, adapters: Sequence[RowAdapters]) -> Tensor:
        dtype, device = self._dtype, computing_device(self._transformer)
        scale = conditioning.tensors.get(GUIDANCE)
        rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
        # A token is the channels of its cells, one channel after the other.
        tokens = pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)
        loras, images = [row.loras for row in adapters], [row.images for row in adapters]
        shares = [row.prompts for row in adapters]
        prompts = joined_prompts(conditioning[PROMPT_EMBEDS].to(device, dtype), shares, PATCH, tokens.shape[1])
        hooked = any(loras) or any(images) or any(shares)
        transformer = uncompiled(self._transformer) if hooked else self._transformer
        with apply_loras(transformer, loras), attending_in_flux(transformer, images):
            velocity: Tensor = transformer(
                hidden_states=tokens.to(device, dtype),
                timestep=sigma.flatten().to(device),
                guidance=None if scale is None else scale.to(device),
                pooled_projections=pooled(conditioning[POOLED_PROMPT_EMBEDS].to(device, dtype), shares),
                encoder_hidden_states=prompts.tokens,
                txt_ids=torch.zeros(prompts.tokens.shape[1], 3, device=device),
                joint_attention_kwargs=None if prompts.bias is None else {"attention_mask": prompts.bias},
                img_ids=_positions(rows, columns, conditioning.tensors.get(PLACE)).to(device),
                return_dict=False,
            )[0]
        return pixel_shuffle(velocity.transpose(1, 2).unflatten(2, (rows, columns)), PATCH)


def _positions(rows: int, columns: int, places: Tensor | None) -> Tensor:
    """Row and column of each token on the canvas [tokens, 3]; the first of the three numbers tells pictures apart.

    All rows of a forward have them, so these show one part of the canvas, `places` [r, 4] (`PLACE`); None: all of it.
    """
    top, left = (0, 0) if places is None else (places[0, :2] // PATCH).tolist()
    row, column = torch.meshgrid(torch.arange(top, top + rows), torch.arange(left, left + columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1).float()
