"""Signs in prompts that mean something elsewhere, and nothing in the job's own dialect."""

from __future__ import annotations

import re

from prefect_regional_diffusion.sampling_core.job.prompt_fields import prompts_of
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.text.plain_text import one_line
from prefect_regional_diffusion.sampling_core.text.prompt_syntax import words_of

WEIGHTED = re.compile(r"\([^()]+:\s*(?:\d+(?:\.\d+)?|\.\d+)\s*\)")
"""How other programs write that a word counts more. A run of digits is matched in one way only, and so in no time."""
_EMBEDDING = re.compile(r"\bembedding:\S+")
_LONGEST = 60


def sign_warnings(job: ResolvedJob) -> list[str]:
    """One line for each prompt with a weight or an embedding that is read as text."""
    syntax = job.base.prompt_syntax
    advice = _plain_advice if syntax == "plain" else _dialect_advice
    problems = {field: advice(words_of(prompt, syntax)) for field, _, prompt in prompts_of(job)}
    return [f"{field}: {text}" for field, text in problems.items() if text]


def _plain_advice(prompt: str) -> str:
    sign = WEIGHTED.search(prompt) or _EMBEDDING.search(prompt)
    if sign is None:
        return ""
    return f"{one_line(sign[0], _LONGEST)} is read as it stands; prompt_syntax: comfyui, or a1111, gives it a meaning"


def _dialect_advice(words: str) -> str:
    sign = _EMBEDDING.search(words)
    return f"{one_line(sign[0], _LONGEST)} is read as words; an embedding has a blank before it" if sign else ""
