"""The configuration of Qwen3, and how a prompt is encoded with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.component import TRANSFORMERS_STEM, Class, Component
from prefect_regional_diffusion.sampling_core.models.configurations import (
    Configuration,
    NetworkConfiguration,
    Positive,
    Shape,
    Share,
    Width,
)
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers, apply_loras
from prefect_regional_diffusion.sampling_core.models.qwen_tokenizer import QwenPromptTokenizer
from prefect_regional_diffusion.sampling_core.models.transformers_switches import OF_GENERATION, OF_TRANSFORMERS

_THETA = 10_000.0


class Rotation(Configuration):
    """Rotary position embeddings, as transformers 5 writes them."""

    ONLY: ClassVar[Mapping[str, object]] = {"rope_type": "default"}

    rope_theta: Positive = _THETA


class Qwen3Model(NetworkConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {
        **OF_TRANSFORMERS,
        "model_type": "qwen3",
        "pruned_heads": {},
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": None,
    }
    NOTES: ClassVar[frozenset[str]] = OF_GENERATION | {
        *("_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "transformers_version"),
        *("initializer_range", "use_cache", "max_window_layers", "max_position_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    }

    # The output layer of a model that generates text.
    SPARE: ClassVar[frozenset[str]] = frozenset({"lm_head.weight"})

    vocab_size: Annotated[int, Field(ge=1, le=2**20)]
    hidden_size: Width
    intermediate_size: Annotated[int, Field(ge=1, le=2**17)]
    num_hidden_layers: Annotated[int, Field(ge=1, le=128)]
    num_attention_heads: Width
    num_key_value_heads: Width
    head_dim: Annotated[int, Field(ge=2, le=1024, multiple_of=2)] = 128
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Share = 1e-6
    attention_bias: bool = False
    attention_dropout: Share = 0.0
    layer_types: Annotated[list[Literal["full_attention"]], Field(max_length=128)] | None = None
    rope_theta: Positive | None = None
    rope_parameters: Rotation | None = None

    @model_validator(mode="after")
    def _heads_fit(self) -> Qwen3Model:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads that are a multiple of num_key_value_heads")
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types of {self.num_hidden_layers} layers")
        return self

    @property
    def theta(self) -> float:
        """The base of the rotary frequencies, under the key of either release."""
        return self.rope_parameters.rope_theta if self.rope_parameters else (self.rope_theta or _THETA)

    @property
    def least_tensors(self) -> int:
        return 11 * self.num_hidden_layers

    def edges(self) -> dict[str, Shape]:
        heads = self.head_dim * self.num_attention_heads
        return {
            "embed_tokens.weight": (self.vocab_size, self.hidden_size),
            "layers.0.self_attn.q_proj.weight": (heads, self.hidden_size),
            "layers.0.mlp.gate_proj.weight": (self.intermediate_size, self.hidden_size),
        }

    @staticmethod
    def canonical_name(name: str) -> str:
        """Names have a prefix where the model was saved as one that generates text."""
        return name.removeprefix("model.")

    def buffers(self) -> dict[str, Tensor]:
        """Frequencies of the positions."""
        frequencies = 1.0 / (self.theta ** (torch.arange(0, self.head_dim, 2, dtype=torch.float) / self.head_dim))
        return {"rotary_emb.inv_freq": frequencies, "rotary_emb.original_inv_freq": frequencies.clone()}


def qwen3_network(configuration: Qwen3Model) -> Any:
    """The network, with random weights."""
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Model as Network

    values = configuration.model_dump(exclude={"rope_theta", "rope_parameters"})
    rotation = {"rope_type": "default", "rope_theta": configuration.theta}
    return Network(Qwen3Config(**values, rope_parameters=rotation))


QWEN3_TEXT = Component(
    Class("transformers", ("Qwen3Model", "Qwen3ForCausalLM")), TRANSFORMERS_STEM, Qwen3Model, qwen3_network
)


def qwen3_states(encoder: Any, tokenizer: QwenPromptTokenizer, prompt: str, loras: Sequence[LoraLayers] = ()) -> Tensor:
    """The states [1, tokens, features] of the last layer but one, of a prompt as a user's message; float32, CPU.

    `loras` is what is added to the encoder, if there is anything.
    """
    tokens = torch.tensor([tokenizer.ids(prompt)], device=encoder.device)
    with apply_loras(encoder, loras):
        states: Tensor = encoder(tokens, output_hidden_states=True, use_cache=False).hidden_states[-2]
    return states.float().cpu()
