"""CLIP's image encoder with its projection: the configuration, as transformers writes it, and the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.component import TRANSFORMERS_STEM, Class, Component
from prefect_regional_diffusion.sampling_core.models.configurations import (
    Count,
    NetworkConfiguration,
    Shape,
    Share,
    Width,
)
from prefect_regional_diffusion.sampling_core.models.transformers_switches import OF_GENERATION, OF_TRANSFORMERS

MODEL_TYPE = "clip_vision_model"
VisionActivation = Literal["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"]


class CLIPVisionModelWithProjection(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {
        "model_type": MODEL_TYPE,
        "num_channels": 3,
        "pruned_heads": {},
        **OF_TRANSFORMERS,
    }
    NOTES: ClassVar[frozenset[str]] = OF_GENERATION | {
        *("_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "transformers_version"),
        *("initializer_factor", "initializer_range", "dropout"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    }
    SPARE: ClassVar[frozenset[str]] = frozenset({"vision_model.embeddings.position_ids"})

    hidden_size: Width = 768
    intermediate_size: Annotated[int, Field(ge=1, le=2**17)] = 3072
    projection_dim: Width = 512
    num_hidden_layers: Count = 12
    num_attention_heads: Width = 12
    image_size: Annotated[int, Field(ge=1, le=1024)] = 224
    patch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    hidden_act: VisionActivation = "quick_gelu"
    layer_norm_eps: Share = 1e-5
    attention_dropout: Share = 0.0

    @property
    def positions(self) -> int:
        """Patches of a picture, and the token of the whole."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def least_tensors(self) -> int:
        return 16 * self.num_hidden_layers

    def edges(self) -> dict[str, Shape]:
        width, patch = self.hidden_size, self.patch_size
        return {
            "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
            "vision_model.embeddings.position_embedding.weight": (self.positions, width),
            "vision_model.encoder.layers.0.mlp.fc1.weight": (self.intermediate_size, width),
            "visual_projection.weight": (self.projection_dim, width),
        }

    def buffers(self) -> dict[str, Tensor]:
        """The numbers of the positions."""
        return {"vision_model.embeddings.position_ids": torch.arange(self.positions)[None]}


def clip_vision_network(configuration: CLIPVisionModelWithProjection) -> Any:
    """The network, with random weights."""
    from transformers.models.clip import modeling_clip
    from transformers.models.clip.configuration_clip import CLIPVisionConfig

    values: dict[str, Any] = configuration.model_dump() | {"attn_implementation": "sdpa"}
    return modeling_clip.CLIPVisionModelWithProjection(CLIPVisionConfig(**values))


CLIP_VISION = Component(
    Class("transformers", ("CLIPVisionModelWithProjection",)),
    TRANSFORMERS_STEM,
    CLIPVisionModelWithProjection,
    clip_vision_network,
)
