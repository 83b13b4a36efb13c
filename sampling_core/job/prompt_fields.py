"""The prompts of a job with the fields that somebody wrote them in, and the textual inversions that they name."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.text.prompt_syntax import embedding_names


class PromptField(NamedTuple):
    """A prompt, the field that it is written in, and the model that reads it."""

    field: str
    model: str
    prompt: str


class NamedEmbedding(NamedTuple):
    """A textual inversion by its name, the field of the prompt that names it, and the model that reads that."""

    field: str
    model: str
    name: str


def embedding_label(name: str) -> str:
    """What a textual inversion is called among the files of a job."""
    return f"embedding:{name}"


def prompts_of(job: ResolvedJob) -> tuple[PromptField, ...]:
    """Every prompt with each model that reads it, once; an inherited one is the job's field."""
    base = job.base
    entries = [("prompt", base.model, base.prompt), ("negative_prompt", base.model, base.negative_prompt)]
    for i, region in enumerate(job.regions):
        settings = region.settings
        negative = "negative_prompt" if "negative_prompt" in region.inherited else f"regions.{i}.negative_prompt"
        entries.append((f"regions.{i}.prompt", settings.model, settings.prompt))
        entries.append((negative, settings.model, settings.negative_prompt))
    if job.refiner is not None:
        entries += [(field, job.refiner.model, prompt) for field, _, prompt in entries]
    prompt_fields = [PromptField(field, model, prompt) for field, model, prompt in entries if prompt is not None]
    return tuple(dict.fromkeys(prompt_fields))


def embeddings_of(job: ResolvedJob) -> tuple[NamedEmbedding, ...]:
    """Every textual inversion that a prompt names."""
    return tuple(
        NamedEmbedding(field, model, name)
        for field, model, prompt in prompts_of(job)
        for name in embedding_names(prompt, job.base.prompt_syntax)
    )
