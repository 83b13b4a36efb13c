"""Warnings about prompts that are longer than a model reads, or have words that it was not trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from prefect_regional_diffusion.sampling_core.engine.guidance import PromptKey
from prefect_regional_diffusion.sampling_core.job.prompt_fields import prompts_of
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.family import Checkpoint
from prefect_regional_diffusion.sampling_core.text.plain_text import one_line
from prefect_regional_diffusion.sampling_core.text.prompt_syntax import words_of

_LAST_WORDS = 6
_LONGEST = 60
"""Characters of the last words, or of an unknown one: a prompt may be one word."""


def prompt_warnings(job: ResolvedJob, used: Collection[PromptKey], models: Mapping[str, Checkpoint]) -> list[str]:
    """One line for each prompt that is too long for its model, and for each with words that the embedded one lacks.

    In other dialects than the plain one no prompt is too long.

    `used` are the prompts of the job's run; for those that it does not evaluate, such as negative prompts without
    guidance, there is no warning. `models` are by name.
    """
    warnings: list[str] = []
    syntax = job.base.prompt_syntax
    evaluated = {(key.model, key.prompt) for key in used}
    for field, name, prompt in prompts_of(job):
        if (name, prompt) in evaluated:
            model = models[name]
            reading = model.reading(prompt)
            if syntax == "plain" and reading.tokens > reading.most:
                last = one_line(" ".join(prompt[: reading.end].split()[-_LAST_WORDS:])[-_LONGEST:])
                warnings.append(
                    f"{field}: {reading.tokens} tokens; the model reads the first {reading.most}, up to "
                    f'"... {last}", and ignores the rest'
                )
            unknown = model.unknown_words(words_of(prompt, syntax)) if model.path == EMBEDDED else []
            if unknown:
                number = "1 word" if len(unknown) == 1 else f"{len(unknown)} words"
                examples = [one_line(word, _LONGEST) for word in unknown[:10]] + ["..."] * (len(unknown) > 10)
                warnings.append(f"{field}: the embedded model does not know {number}: {', '.join(examples)}")
    return warnings
