"""Shapes of prompt encodings before they are encoded: they decide which rows can share a forward."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from prefect_regional_diffusion.sampling_core.engine.guidance import PromptKey
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.family import Checkpoint
from prefect_regional_diffusion.sampling_core.models.textual_inversion import Embeddings
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec

Unencoded = Mapping[PromptKey, Conditioning]
"""Conditionings without numbers, on torch's meta device."""


def prompt_specs(key: PromptKey, model: Checkpoint, embeddings: Embeddings) -> dict[str, TensorSpec]:
    """Names, types and shapes of an encoded prompt. `embeddings` has at least what the prompt names."""
    chunks = model.chunks(key.prompt, key.syntax, embeddings)
    return {
        name: spec._replace(shape=(1, _times(spec.shape[1], chunks), *spec.shape[2:]))
        if name in model.facts.repeatable
        else spec
        for name, spec in model.conditioning_specs.items()
    }


def unencoded(specs: Mapping[str, TensorSpec], repeatable: frozenset[str]) -> Conditioning:
    """A conditioning of these specs, whose sizes are numbers."""
    tensors = {name: torch.empty([*map(_times, spec.shape)], device="meta") for name, spec in specs.items()}
    return Conditioning(tensors, repeatable)


def told_in_counting(prompts: Collection[PromptKey], layouts: Unencoded) -> dict[PromptKey, Conditioning]:
    """Conditionings for counting forwards: empty ones, unless some of the prompts have different shapes.

    `layouts` may be empty: all prompts then count as of one shape.
    """
    conditionings = {key: layouts.get(key, Conditioning({})) for key in prompts}
    by_model: dict[str, set[object]] = {}
    for key, conditioning in conditionings.items():
        by_model.setdefault(key.model, set()).add((conditioning.layout, conditioning.lengths))
    alike = all(len(shapes) == 1 for shapes in by_model.values())
    return dict.fromkeys(prompts, Conditioning({})) if alike else conditionings


def _times(size: int | range, times: int = 1) -> int:
    """A size of a tensor, so many times. Raises ValueError for a range of sizes."""
    if isinstance(size, range):
        raise ValueError("an encoded prompt has one shape")  # noqa: TRY004 - a spec's value, not its type
    return size * times
