"""Prompts of which a model does not read or does not know a part."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.engine.guidance import PromptKey
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.family import Checkpoint
from prefect_regional_diffusion.sampling_core.text.plain_text import one_line

_LAST_WORDS = 6
_LONGEST = 60
"""Characters of the last words, or of an unknown one: a prompt may be one word."""


class _Prompt(NamedTuple):
    field: str
    model: str
    prompt: str


def prompt_warnings(job: ResolvedJob, used: Collection[PromptKey], models: Mapping[str, Checkpoint]) -> list[str]:
    """One line for each prompt that is too long for its model, and for each with words that the embedded one lacks.

    `used` are the prompts of the job's run; what it leaves out, such as negative prompts without guidance, is
    nobody's loss. `models` are by name.
    """
    found: list[str] = []
    evaluated = {(key.model, key.prompt) for key in used}
    for field, name, prompt in _prompts(job):
        if (name, prompt) in evaluated:
            model = models[name]
            read = model.reading(prompt)
            if read.tokens > read.most:
                last = one_line(" ".join(prompt[: read.end].split()[-_LAST_WORDS:])[-_LONGEST:])
                found.append(
                    f"{field}: {read.tokens} tokens; the model reads the first {read.most}, up to "
                    f'"... {last}", and ignores the rest'
                )
            unknown = model.unknown_words(prompt) if model.path == EMBEDDED else []
            if unknown:
                number = "1 word" if len(unknown) == 1 else f"{len(unknown)} words"
                shown = [one_line(word, _LONGEST) for word in unknown[:10]] + ["..."] * (len(unknown) > 10)
                found.append(f"{field}: the embedded model does not know {number}: {', '.join(shown)}")
    return found


def _prompts(job: ResolvedJob) -> list[_Prompt]:
    """Each field with a prompt, and the model that reads it; an inherited one is the job's field."""
    base = job.base
    prompts = [("prompt", base.model, base.prompt), ("negative_prompt", base.model, base.negative_prompt)]
    for i, region in enumerate(job.regions):
        settings = region.settings
        negative = "negative_prompt" if "negative_prompt" in region.inherited else f"regions.{i}.negative_prompt"
        prompts.append((f"regions.{i}.prompt", settings.model, settings.prompt))
        prompts.append((negative, settings.model, settings.negative_prompt))
    return list(dict.fromkeys(_Prompt(field, model, prompt) for field, model, prompt in prompts if prompt is not None))
