"""T5's encoder in single files: under transformers' names."""

from __future__ import annotations

from typing import Any

from prefect_regional_diffusion.sampling_core.models.single_file.tensors import Tensors, axis, below, num_blocks
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights

_SHARED, _EMBED_TOKENS = "shared.weight", "encoder.embed_tokens.weight"
"""Two names for the same embeddings: files have one of them, or both."""


def t5_weights(file: Tensors, prefix: str) -> Weights:
    """The tensors of the encoder; none if the file has it not."""
    weights = below(file, prefix)
    if _SHARED in weights:
        weights.pop(_EMBED_TOKENS, None)
    return weights


def t5_configuration(weights: Weights) -> dict[str, Any]:
    """What the tensors' shapes say of a configuration, in its keys; the rest as in T5 1.1."""
    block = "encoder.block.0.layer"
    attention, distances = f"{block}.0.SelfAttention", "relative_attention_bias.weight"
    embeddings = _SHARED if _SHARED in weights else _EMBED_TOKENS
    is_gated = f"{block}.1.DenseReluDense.wi_0.weight" in weights
    heads = axis(weights, f"{attention}.{distances}", 1)
    return {
        "model_type": "t5",
        "vocab_size": axis(weights, embeddings, 0),
        "d_model": axis(weights, embeddings, 1),
        "d_kv": axis(weights, f"{attention}.q.weight", 0) // max(1, heads),
        "d_ff": axis(weights, f"{block}.1.DenseReluDense.wo.weight", 1),
        "num_layers": num_blocks(weights, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": axis(weights, f"{attention}.{distances}", 0),
        "feed_forward_proj": "gated-gelu" if is_gated else "relu",
    }
