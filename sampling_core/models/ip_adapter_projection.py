"""How an IP-Adapter (Ye et al. 2023) turns the features of a picture into tokens that a denoiser can attend to.

A plain one projects the vector of the whole picture; a Plus has a resampler (Alayrac et al. 2022) that reads the states
of all patches. Weights have the names of published files, without their prefix.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from prefect_regional_diffusion.sampling_core.models.configurations import Shape

AdapterKind = Literal["plain", "plus"]
HEAD = 64
"""Features of a head of the resampler's attention, in all published files."""


def plain_shapes(token_width: int, tokens: int, features: int) -> dict[str, Shape]:
    """The weights of a plain one: from `features` of a picture to `tokens` of `token_width` features each."""
    return {
        "proj.weight": (tokens * token_width, features),
        "proj.bias": (tokens * token_width,),
        "norm.weight": (token_width,),
        "norm.bias": (token_width,),
    }


def plus_shapes(token_width: int, tokens: int, features: int, width: int) -> dict[str, Shape]:
    """The weights of a Plus but for its layers, inside which a token has `width` features."""
    return {
        "latents": (1, tokens, width),
        "proj_in.weight": (width, features),
        "proj_in.bias": (width,),
        "proj_out.weight": (token_width, width),
        "proj_out.bias": (token_width,),
        "norm_out.weight": (token_width,),
        "norm_out.bias": (token_width,),
    }


def layer_shapes(width: int, inner: int, hidden: int) -> dict[str, Shape]:
    """The weights of one layer of a Plus; all heads of its attention have `inner` features, what follows `hidden`."""
    return {
        **{f"0.{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")},
        "0.to_q.weight": (inner, width),
        "0.to_kv.weight": (2 * inner, width),
        "0.to_out.weight": (width, inner),
        "1.0.weight": (width,),
        "1.0.bias": (width,),
        "1.1.weight": (hidden, width),
        "1.3.weight": (width, hidden),
    }


def image_tokens(kind: AdapterKind, weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Tokens [b, tokens, token_width] of pictures.

    `features` are [b, features] of a plain one, and [b, positions, features] of a Plus, of the weights' type.
    """
    if kind == "plus":
        return _resample(weights, features)
    projected = functional.linear(features, weights["proj.weight"], weights["proj.bias"])
    return _layer_norm(projected.unflatten(1, (-1, len(weights["norm.weight"]))), weights, "norm")


def depth(names: Collection[str]) -> int:
    """The number of layers of a Plus, of whose weights these are names."""
    return len({name.split(".")[1] for name in names if name.startswith("layers.")})


def _resample(weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
    latents = weights["latents"].expand(len(features), -1, -1)
    x = functional.linear(features, weights["proj_in.weight"], weights["proj_in.bias"])
    for i in range(depth(weights)):
        latents = latents + _attend(weights, f"layers.{i}.0", x, latents)
        latents = latents + _feed_forward(weights, f"layers.{i}.1", latents)
    tokens = functional.linear(latents, weights["proj_out.weight"], weights["proj_out.bias"])
    return _layer_norm(tokens, weights, "norm_out")


def _attend(weights: Mapping[str, Tensor], layer: str, x: Tensor, latents: Tensor) -> Tensor:
    """Attention of the latents to the picture and to each other."""
    normed_latents = _layer_norm(latents, weights, f"{layer}.norm2")
    context = torch.cat([_layer_norm(x, weights, f"{layer}.norm1"), normed_latents], dim=1)
    query = functional.linear(normed_latents, weights[f"{layer}.to_q.weight"])
    key, value = functional.linear(context, weights[f"{layer}.to_kv.weight"]).chunk(2, dim=-1)
    attention = functional.scaled_dot_product_attention(_by_head(query), _by_head(key), _by_head(value))
    return functional.linear(attention.transpose(1, 2).flatten(2), weights[f"{layer}.to_out.weight"])


def _by_head(tokens: Tensor) -> Tensor:
    """[b, tokens, features] as [b, heads, tokens, HEAD]."""
    return tokens.unflatten(2, (-1, HEAD)).transpose(1, 2)


def _feed_forward(weights: Mapping[str, Tensor], layer: str, latents: Tensor) -> Tensor:
    inner = functional.linear(_layer_norm(latents, weights, f"{layer}.0"), weights[f"{layer}.1.weight"])
    return functional.linear(functional.gelu(inner), weights[f"{layer}.3.weight"])


def _layer_norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return functional.layer_norm(x, weight.shape, weight, bias)
