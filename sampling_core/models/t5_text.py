"""The configuration of T5's encoder, and how a prompt is encoded with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers, apply_loras
from prefect_regional_diffusion.sampling_core.models.t5_tokenizer import T5PromptTokenizer
from prefect_regional_diffusion.sampling_core.models.transformers_switches import OF_GENERATION, OF_TRANSFORMERS

_EMBEDDINGS = "shared.weight"


class T5EncoderModel(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {
        **{key: value for key, value in OF_TRANSFORMERS.items() if key != "is_encoder_decoder"},
        "model_type": "t5",
        "pruned_heads": {},
    }
    NOTES: ClassVar[frozenset[str]] = OF_GENERATION | {
        *("_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "transformers_version"),
        *("initializer_factor", "dropout_rate", "classifier_dropout", "output_past", "use_cache", "n_positions"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
        # Of the decoder, which is not there.
        *("num_decoder_layers", "scale_decoder_outputs", "is_encoder_decoder"),
        # These follow from `feed_forward_proj`.
        *("dense_act_fn", "is_gated_act"),
    }

    vocab_size: Annotated[int, Field(ge=1, le=2**20)]
    d_model: Width
    d_kv: Width
    d_ff: Annotated[int, Field(ge=1, le=2**17)]
    num_layers: Count
    num_heads: Width
    relative_attention_num_buckets: Width = 32
    relative_attention_max_distance: Width = 128
    layer_norm_epsilon: Share = 1e-6
    feed_forward_proj: Literal["relu", "gated-gelu", "gated-silu"] = "relu"

    @property
    def least_tensors(self) -> int:
        return 8 * self.num_layers

    def edges(self) -> dict[str, Shape]:
        return {
            _EMBEDDINGS: (self.vocab_size, self.d_model),
            "encoder.block.0.layer.0.SelfAttention.q.weight": (self.num_heads * self.d_kv, self.d_model),
            "encoder.block.0.layer.1.DenseReluDense.wo.weight": (self.d_model, self.d_ff),
        }

    @staticmethod
    def canonical_name(name: str) -> str:
        """The encoder's embeddings are the shared ones."""
        return _EMBEDDINGS if name == "encoder.embed_tokens.weight" else name

    @staticmethod
    def overflows(name: str) -> bool:
        return name.endswith(".wo.weight")


def t5_network(configuration: T5EncoderModel) -> Any:
    """The network, with random weights."""
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel as Network

    return Network(T5Config(**configuration.model_dump()))


T5_TEXT = Component(Class("transformers", ("T5EncoderModel",)), TRANSFORMERS_STEM, T5EncoderModel, t5_network)


def t5_states(encoder: Any, tokenizer: T5PromptTokenizer, prompt: str, loras: Sequence[LoraLayers] = ()) -> Tensor:
    """The last hidden state [1, tokens, features] of a prompt, float32 on the CPU. Padding is not masked.

    `loras` is what is added to the encoder, if there is anything.
    """
    tokens = torch.tensor([tokenizer.ids(prompt)], device=encoder.device)
    with apply_loras(encoder, loras):
        states: Tensor = encoder(tokens)[0]
    return states.float().cpu()
