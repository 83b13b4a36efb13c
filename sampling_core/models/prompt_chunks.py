"""Prompts in chunks, each as long as a text encoder's positions: which tokens are in which, and their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.text.prompt_spans import Break, Embedding, Span
from prefect_regional_diffusion.sampling_core.text.prompt_syntax import parse_prompt

_SHORT = 8
"""ComfyUI takes a span of fewer tokens apart for no chunk."""
_COMMA_BACKTRACK = 20
"""Automatic1111's web UI looks back for a comma over so many tokens, and goes on behind it in the next chunk."""


class Vector(NamedTuple):
    """One of the vectors of a textual inversion."""

    name: str
    number: int


Token = int | Vector


class WeightedToken(NamedTuple):
    """A token and its weight."""

    token: Token
    weight: float


Chunk = list[WeightedToken]
"""Tokens without begin, end and padding."""


def prompt_chunks(
    prompt: str, syntax: PromptSyntax, tokenizer: PromptTokenizer, vectors: Mapping[str, int]
) -> list[Chunk]:
    """The chunks of a prompt, at least one. `vectors` says how many each textual inversion has that the prompt names.

    In the plain dialect there is one chunk, and what it has no room for is left out. Raises PromptError.
    """
    spans = [_Tokens(span, _tokens(span, tokenizer, vectors)) for span in parse_prompt(prompt, syntax)]
    match syntax:
        case "plain":
            return [[weighted_token for _, tokens in spans for weighted_token in tokens][: tokenizer.most]]
        case "comfyui":
            return _comfyui_chunks([tokens for _, tokens in spans], tokenizer.most)
        case "a1111":
            return list(_a1111_chunks(spans, tokenizer))


class _Tokens(NamedTuple):
    span: Span
    tokens: list[WeightedToken]


def _tokens(span: Span, tokenizer: PromptTokenizer, vectors: Mapping[str, int]) -> list[WeightedToken]:
    match span:
        case Break():
            return []
        case Embedding(name, weight):
            return [WeightedToken(Vector(name, i), weight) for i in range(vectors[name])]
        case _:
            return [WeightedToken(token, span.weight) for token in tokenizer.words(span.text)]


def _comfyui_chunks(groups: Sequence[list[WeightedToken]], most: int) -> list[Chunk]:
    """Short spans are in one chunk each; a longer one fills up the chunk that it begins in."""
    chunks: list[Chunk] = [[]]
    for group in groups:
        rest = group
        is_short = len(group) < min(_SHORT, most + 1)
        while len(rest) > most - len(chunks[-1]):
            room = 0 if is_short else most - len(chunks[-1])
            chunks[-1] += rest[:room]
            rest = rest[room:]
            chunks.append([])
        chunks[-1] += rest
    return chunks


def _a1111_chunks(spans: Sequence[_Tokens], tokenizer: PromptTokenizer) -> Iterator[Chunk]:
    """Chunks end behind a comma if one is near; `BREAK` ends one, and an embedding is in one chunk."""
    most = tokenizer.most
    chunk, behind_comma, is_first = Chunk(), None, True
    for span, tokens in spans:
        if isinstance(span, Break) or (isinstance(span, Embedding) and len(chunk) + len(tokens) > most):
            yield chunk
            chunk, behind_comma, is_first = Chunk(), None, False
        for weighted_token in tokens:
            if len(chunk) == most:
                comma_is_near = behind_comma is not None and most - behind_comma < _COMMA_BACKTRACK
                end = behind_comma if comma_is_near and weighted_token.token != tokenizer.comma else most
                yield chunk[:end]
                chunk, behind_comma, is_first = chunk[end:], None, False
            chunk.append(weighted_token)
            if weighted_token.token == tokenizer.comma:
                behind_comma = len(chunk)
    if chunk or is_first:
        yield chunk
