"""The configuration of CLIP's text encoder, as transformers has written it since 2022."""

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

TextActivation = Literal["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"]


class CLIPTextModel(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {
        "model_type": "clip_text_model",
        "pruned_heads": {},
        "use_attention_mask": False,
        **OF_TRANSFORMERS,
    }
    NOTES: ClassVar[frozenset[str]] = OF_GENERATION | {
        *("_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "transformers_version"),
        *("initializer_factor", "initializer_range", "projection_dim", "dropout"),
        # Where a pooled embedding is taken from, which not all encoders are asked for.
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    }

    SPARE: ClassVar[frozenset[str]] = frozenset({"embeddings.position_ids"})

    vocab_size: Annotated[int, Field(ge=1, le=2**20)]
    hidden_size: Width
    intermediate_size: Annotated[int, Field(ge=1, le=2**17)]
    num_hidden_layers: Count
    num_attention_heads: Width
    max_position_embeddings: Annotated[int, Field(ge=3, le=8192)] = 77
    hidden_act: TextActivation = "quick_gelu"
    layer_norm_eps: Share = 1e-5
    attention_dropout: Share = 0.0

    @property
    def least_tensors(self) -> int:
        return 16 * self.num_hidden_layers

    def edges(self) -> dict[str, Shape]:
        width = self.hidden_size
        return {
            "embeddings.token_embedding.weight": (self.vocab_size, width),
            "embeddings.position_embedding.weight": (self.max_position_embeddings, width),
            "encoder.layers.0.mlp.fc1.weight": (self.intermediate_size, width),
        }

    def buffers(self) -> dict[str, Tensor]:
        """The numbers of the positions."""
        return {"embeddings.position_ids": torch.arange(self.max_position_embeddings)[None]}

    @staticmethod
    def canonical_name(name: str) -> str:
        """Releases of transformers differ in whether there is a prefix."""
        return name.removeprefix("text_model.")


class PooledCLIPTextModel(CLIPTextModel):
    """One whose pooled embedding is used: the state of the last layer at the first token that ends the text."""

    NOTES: ClassVar[frozenset[str]] = CLIPTextModel.NOTES - {"eos_token_id"}

    eos_token_id: Annotated[int, Field(ge=0, lt=2**20)] = 49407


class CLIPTextModelWithProjection(PooledCLIPTextModel):
    """One whose pooled embedding is projected to a width of its own."""

    NOTES: ClassVar[frozenset[str]] = PooledCLIPTextModel.NOTES - {"projection_dim"}

    projection_dim: Width = 512

    def edges(self) -> dict[str, Shape]:
        return super().edges() | {"text_projection.weight": (self.projection_dim, self.hidden_size)}


def clip_text_network(configuration: CLIPTextModel) -> Any:
    """The network, with random weights; with a projection if the configuration has one."""
    from transformers.models.clip import modeling_clip
    from transformers.models.clip.configuration_clip import CLIPTextConfig

    has_projection = isinstance(configuration, CLIPTextModelWithProjection)
    network = modeling_clip.CLIPTextModelWithProjection if has_projection else modeling_clip.CLIPTextModel
    values: dict[str, Any] = configuration.model_dump() | {"attn_implementation": "sdpa"}
    return network(CLIPTextConfig(**values))


CLIP_TEXT = Component(Class("transformers", ("CLIPTextModel",)), TRANSFORMERS_STEM, CLIPTextModel, clip_text_network)
CLIP_TEXT_WITH_PROJECTION = Component(
    Class("transformers", ("CLIPTextModelWithProjection",)),
    TRANSFORMERS_STEM,
    CLIPTextModelWithProjection,
    clip_text_network,
)
