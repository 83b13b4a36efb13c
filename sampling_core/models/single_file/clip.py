"""CLIP's text encoders in single files: under transformers' names, or under OpenCLIP's, which fuse three matrices."""

from __future__ import annotations

from typing import Any

from prefect_regional_diffusion.sampling_core.models.single_file.tensors import (
    Tensors,
    axis,
    below,
    linear,
    num_blocks,
    replaced,
    share,
    transposed,
)
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights

VOCABULARY = 49408
"""Tokens of every published CLIP."""
_HEAD_WIDTH = 64
"""Features of a head, in every published CLIP."""
_TOKENS = "embeddings.token_embedding.weight"
_PROJECTION = "text_projection.weight"
_UNUSED = ("logit_scale", "text_projection", _PROJECTION, "text_model.text_projection.weight")
_BLOCKS = "transformer.resblocks."
_OUTSIDE = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding": "embeddings.token_embedding",
    "ln_final": "final_layer_norm",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def clip_weights(file: Tensors, prefix: str) -> Weights:
    """The tensors of an encoder under transformers' names."""
    tensors = below(file, prefix)
    return {name.removeprefix("text_model."): info for name, info in tensors.items() if name not in _UNUSED}


def projected_clip_weights(file: Tensors, prefix: str) -> Weights:
    """Those of an encoder with its projection; one that a file leaves out is a unit matrix."""
    weights = clip_weights(file, prefix)
    projection = below(file, prefix).get(_PROJECTION)
    if projection is None and (first := weights.get(_TOKENS)) is not None:
        width = axis(weights, _TOKENS, 1)
        projection = first._replace(shape=(width, width), order="unit matrix")
    return weights if projection is None else weights | {_PROJECTION: projection}


def open_clip_weights(file: Tensors, prefix: str, layers: int | None = None, *, projected: bool) -> Weights:
    """Those of an encoder under OpenCLIP's names, by transformers' ones.

    `layers` are read, if there are more; `projected` says whether its projection is.
    """
    weights: Weights = {}
    for name, info in below(file, prefix).items():
        if name.startswith(_BLOCKS):
            number, _, inside = name.removeprefix(_BLOCKS).partition(".")
            if layers is not None and number.isdecimal() and int(number) >= layers:
                continue
            place = f"encoder.layers.{number}"
            fused_name, _, kind = inside.rpartition("_")
            if fused_name == "attn.in_proj":
                for index, letter in enumerate("qkv"):
                    weights[f"{place}.self_attn.{letter}_proj.{kind}"] = share(info, index, 3)
            else:
                weights[f"{place}.{replaced(inside, _BLOCK)}"] = info
        elif name in ("text_projection", _PROJECTION):
            if projected:
                # As a layer it is stored like any other one; as a matrix it is multiplied from the other side.
                weights[_PROJECTION] = info if name.endswith("weight") else transposed(info)
        elif name not in _UNUSED:
            weights[replaced(name, _OUTSIDE)] = linear(info) if len(info.shape) > 2 else info
    return weights


def clip_configuration(weights: Weights, activation: str) -> dict[str, Any]:
    """What the tensors' shapes say of a configuration, in its keys; the rest as in every published CLIP."""
    vocabulary, width = (axis(weights, _TOKENS, dim) for dim in (0, 1))
    configuration = {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": axis(weights, "encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers": num_blocks(weights, "encoder.layers."),
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "max_position_embeddings": axis(weights, "embeddings.position_embedding.weight", 0),
        "hidden_act": activation,
        "eos_token_id": vocabulary - 1,
    }
    projection = axis(weights, _PROJECTION, 0)
    return configuration | ({"projection_dim": projection} if projection else {})
