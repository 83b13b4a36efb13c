"""Prompts of several chunks, with weights and textual inversions, through one text encoder of CLIP."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.prompt_chunks import Chunk, Vector
from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer
from prefect_regional_diffusion.sampling_core.names import PromptSyntax


class Encoded(NamedTuple):
    """A text encoder's output for rows of tokens."""

    states: Tensor
    """Of every token: [rows, tokens, features]."""
    pooled: Tensor | None = None
    """Of every row: [rows, features]."""


def encode_chunks(
    chunks: Sequence[Chunk],
    syntax: PromptSyntax,
    encoder: Any,
    tokenizer: PromptTokenizer,
    vectors: Mapping[str, Tensor],
    forward: Callable[[Tensor], Encoded],
) -> Encoded:
    """The states [1, chunks * tokens, features] of all chunks (at least one), weighted; float32 on the CPU.

    `vectors` [n, features] are those of textual inversions by name; `forward` runs the encoder on rows of tokens. The
    pooled state is that of the first chunk, whatever its weights are. Without weights, the states are the encoder's
    own.
    """
    rows = [
        tokenizer.framed([_token_id(weighted_token.token, tokenizer) for weighted_token in chunk]) for chunk in chunks
    ]
    weights = torch.ones(len(chunks), tokenizer.length, 1)
    places: dict[tuple[int, int], Tensor] = {}
    for row, chunk in enumerate(chunks):
        for place, (token, weight) in enumerate(chunk, start=1):
            weights[row, place] = weight
            if isinstance(token, Vector):
                places[row, place] = vectors[token.name][token.number]
    is_weighted = bool((weights != 1).any())
    if is_weighted and syntax == "comfyui":
        rows.append(tokenizer.framed([]))
    with _override_embeddings(encoder, places):
        encoded = forward(torch.tensor(rows, device=encoder.device))
    states = encoded.states.float().cpu()
    if is_weighted:
        states = (
            _interpolate_from_empty(states, weights) if syntax == "comfyui" else _scale_keeping_mean(states, weights)
        )
    pooled = None if encoded.pooled is None else encoded.pooled[:1].float().cpu().clone()
    return Encoded(states.flatten(0, 1)[None].clone(), pooled)


def _interpolate_from_empty(states: Tensor, weights: Tensor) -> Tensor:
    """As ComfyUI does: a weight is a step from the empty prompt, whose states are the last row, to the word's own."""
    empty = states[-1:]
    return torch.where(weights == 1, states[:-1], (states[:-1] - empty) * weights + empty)


def _scale_keeping_mean(states: Tensor, weights: Tensor) -> Tensor:
    """As Automatic1111's web UI does: states are multiplied, and each chunk's mean is brought back to what it was."""
    weighted = states * weights
    mean_before, mean_after = (part.mean(dim=(1, 2), keepdim=True) for part in (states, weighted))
    return weighted * (mean_before / mean_after)


def _token_id(token: int | Vector, tokenizer: PromptTokenizer) -> int:
    """The token's number; for a vector that of the begin token, which no encoder takes for the prompt's end."""
    return tokenizer.begin if isinstance(token, Vector) else token


@contextmanager
def _override_embeddings(encoder: Any, places: Mapping[tuple[int, int], Tensor]) -> Generator[None]:
    """Within the block, the encoder embeds other vectors [features] at some rows and places of its tokens."""

    def insert_vectors(_module: Any, _tokens: Any, embedded: Tensor) -> Tensor:
        for (row, place), vector in places.items():
            embedded[row, place] = vector.to(embedded)
        return embedded

    hook = encoder.get_input_embeddings().register_forward_hook(insert_vectors)
    try:
        yield
    finally:
        hook.remove()
