"""Prompts as people write them: text in one of several dialects, taken apart into spans that have a weight each.

`plain` has no signs of its own: a prompt is read as it stands. `comfyui` and `a1111` are how prompts are written for
ComfyUI and for Automatic1111's web UI; what their signs mean is in `comfyui_syntax` and `a1111_syntax`. In both, a word
`embedding:NAME` stands for the vectors of a textual inversion (Gal et al. 2022).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.text.a1111_syntax import a1111_spans
from prefect_regional_diffusion.sampling_core.text.comfyui_syntax import comfyui_spans
from prefect_regional_diffusion.sampling_core.text.prompt_spans import Break, Embedding, PromptError, Span, Words

MOST_WEIGHT = 10_000
"""A weight is at most this, in either direction: no encoding has numbers without end."""

_EMBEDDING = re.compile(r"(?:^|(?<=[ \n]))embedding:\s*([^\s,<\[]*)")
"""ComfyUI looks for it where a span or a word begins."""


def parse_prompt(prompt: str, syntax: PromptSyntax) -> tuple[Span, ...]:
    """The spans of a prompt, in their order, none of them empty. Raises PromptError for what cannot be read."""
    match syntax:
        case "plain":
            return (Words(prompt, 1.0),) if prompt else ()
        case "comfyui":
            spans = comfyui_spans(prompt)
        case "a1111":
            spans = a1111_spans(prompt)
    parsed = tuple(_with_embeddings(spans))
    for span in parsed:
        if not isinstance(span, Break) and abs(span.weight) > MOST_WEIGHT:
            raise PromptError(f"weights from -{MOST_WEIGHT} to {MOST_WEIGHT} ({span.weight:g} is one)")
    return parsed


def embedding_names(prompt: str | None, syntax: PromptSyntax) -> list[str]:
    """The textual inversions that a prompt names, each once, in the order of the alphabet. Raises PromptError."""
    spans = parse_prompt(prompt or "", syntax)
    return sorted({span.name for span in spans if isinstance(span, Embedding)})


def words_of(prompt: str, syntax: PromptSyntax) -> str:
    """A prompt's words without the signs of its dialect. Raises PromptError."""
    return " ".join(span.text for span in parse_prompt(prompt, syntax) if isinstance(span, Words))


def _with_embeddings(spans: Iterable[Span]) -> Iterable[Span]:
    """The spans, with the embeddings that words name taken out of these."""
    for span in spans:
        if not isinstance(span, Words):
            yield span
            continue
        end = 0
        for reference in _EMBEDDING.finditer(span.text):
            name = reference[1].removesuffix(".safetensors")
            if not name:
                raise PromptError("a name after embedding:")
            if reference.start() > end:
                yield span._replace(text=span.text[end : reference.start()])
            yield Embedding(name, span.weight)
            end = reference.end()
        if end < len(span.text):
            yield span._replace(text=span.text[end:])
