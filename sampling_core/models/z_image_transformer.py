"""diffusers' transformer of Z-Image: its configuration, and as a denoiser.

It takes lists, a time that grows towards the picture, and answers with the velocity's opposite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.compiling import uncompiled
from prefect_regional_diffusion.sampling_core.models.component import DIFFUSERS_STEM, Class, Component
from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS, PROMPT_LENGTH, Conditioning
from prefect_regional_diffusion.sampling_core.models.configurations import (
    OF_DIFFUSERS,
    Count,
    NetworkConfiguration,
    Positive,
    Shape,
    Share,
    Width,
)
from prefect_regional_diffusion.sampling_core.models.flow_denoiser import FlowDenoiser
from prefect_regional_diffusion.sampling_core.models.lora_rows import apply_loras
from prefect_regional_diffusion.sampling_core.models.offloading import computing_device
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.models.tensor_info import TensorInfo, Weights
from prefect_regional_diffusion.sampling_core.tensors.types import Rows

PATCH = 2
"""Edge of a token in latent cells."""
_PROMPT_MULTIPLE = 32
"""The network pads prompts to a multiple of so many tokens."""
_Lengths = Annotated[list[Annotated[int, Field(ge=1, le=2**16)]], Field(min_length=3, max_length=3)]


class ZImageTransformer2DModel(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {
        "_class_name": "ZImageTransformer2DModel",
        "all_patch_size": [PATCH],
        "all_f_patch_size": [1],
        # Pictures beside the prompt, which Z-Image Omni reads.
        "siglip_feat_dim": None,
    }
    NOTES: ClassVar[frozenset[str]] = OF_DIFFUSERS

    in_channels: Width = 16
    dim: Width = 3840
    n_layers: Count = 30
    n_refiner_layers: Count = 2
    n_heads: Width = 30
    n_kv_heads: Width = 30
    norm_eps: Share = 1e-5
    qk_norm: bool = True
    cap_feat_dim: Width = 2560
    rope_theta: Positive = 256.0
    t_scale: Positive = 1000.0
    axes_dims: Annotated[list[Width], Field(min_length=3, max_length=3)] = Field(default=[32, 48, 48])
    axes_lens: _Lengths = Field(default=[1024, 512, 512])

    @model_validator(mode="after")
    def _positions_fit(self) -> ZImageTransformer2DModel:
        if sum(self.axes_dims) * self.n_heads != self.dim or any(size % 2 for size in self.axes_dims):
            raise ValueError(f"three even axes_dims whose sum is dim / n_heads, {self.dim} / {self.n_heads}")
        if self.most_tokens < 1:
            raise ValueError(f"axes_lens with positions for {_PROMPT_MULTIPLE} tokens of a prompt, and for a picture")
        return self

    @property
    def most_tokens(self) -> int:
        """Tokens of a prompt that there are positions for, before that of the picture; the first position is 1."""
        return (self.axes_lens[0] - 2) // _PROMPT_MULTIPLE * _PROMPT_MULTIPLE

    @property
    def least_tensors(self) -> int:
        return 10 * (self.n_layers + 2 * self.n_refiner_layers)

    def edges(self) -> dict[str, Shape]:
        return {
            f"all_x_embedder.{PATCH}-1.weight": (self.dim, PATCH * PATCH * self.in_channels),
            "cap_embedder.1.weight": (self.dim, self.cap_feat_dim),
            "layers.0.attention.to_q.weight": (self.dim, self.dim),
        }


def z_image_transformer_network(configuration: ZImageTransformer2DModel) -> Any:
    """The network, with random weights."""
    from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel as Network

    return Network(**configuration.model_dump())


Z_IMAGE_TRANSFORMER = Component(
    Class("diffusers", ("ZImageTransformer2DModel",)),
    DIFFUSERS_STEM,
    ZImageTransformer2DModel,
    z_image_transformer_network,
)


def z_image_layers(network: Weights) -> Weights:
    """Where the first release's transformer has the layers of diffusers' one with these weights: each has the name of
    the layer there, and its rows."""
    layers = {
        "all_x_embedder.2-1.weight": TensorInfo("", "x_embedder", (), ""),
        "all_final_layer.2-1.linear.weight": TensorInfo("", "final_layer.linear", (), ""),
        "all_final_layer.2-1.adaLN_modulation.1.weight": TensorInfo("", "final_layer.adaLN_modulation.1", (), ""),
    }
    query = ".to_q.weight"
    for attention in [name.removesuffix(query) for name in network if name.endswith(query)]:
        first = 0
        for letter in "qkv":
            weight = f"{attention}.to_{letter}.weight"
            end = first + network[weight].shape[0]
            layers[weight] = TensorInfo("", f"{attention}.qkv", (), "", rows=(first, end))
            first = end
        layers[f"{attention}.to_out.0.weight"] = TensorInfo("", f"{attention}.out", (), "")
    return layers


class ZImageDenoiser(FlowDenoiser):
    """Of Z-Image, whose network takes rows as lists."""

    def _velocity(self, x: Rows, sigma: Tensor, conditioning: Conditioning, adapters: Sequence[RowAdapters]) -> Tensor:
        dtype, device = self._dtype, computing_device(self._transformer)
        prompts = conditioning[PROMPT_EMBEDS].to(device, dtype)
        lengths = conditioning[PROMPT_LENGTH].tolist()
        loras = [row.loras for row in adapters]
        transformer = uncompiled(self._transformer) if any(loras) else self._transformer
        with apply_loras(transformer, loras):
            # The axis of one frame, which the network's pictures have, comes after the channels.
            answers: list[Tensor] = transformer(
                list(x[:, :, None].to(device, dtype)),
                (1 - sigma.flatten()).to(device),
                [prompt[:length] for prompt, length in zip(prompts, lengths, strict=True)],
                return_dict=False,
            )[0]
        return -torch.stack(answers)[:, :, 0]
