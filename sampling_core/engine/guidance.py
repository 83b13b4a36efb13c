"""Classifier-free guidance (Ho & Salimans 2022): which rows a query needs, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers.base import DenoisedPrediction, Query
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


class PromptKey(NamedTuple):
    """A prompt and the model whose text encoders read it."""

    model: str
    prompt: str


class Row(NamedTuple):
    """One network input: a latent, its level, and the prompt it is conditioned on."""

    x: Latent
    level: Level
    prompt: PromptKey


class ClassifierFreeGuidance(NamedTuple):
    """Guidance towards `positive` and away from `negative` with strength `cfg`; at 1 only `positive` is asked."""

    cfg: float
    positive: str
    negative: str
    always_both: bool = False
    """The sampler asks for the unconditional prediction too, also where guidance is off."""
    model: str = ""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts that queries are evaluated with."""
        if math.isclose(self.cfg, 1.0) and not self.always_both:
            return (self.positive,)
        return (self.negative, self.positive)

    @property
    def prompt_keys(self) -> tuple[PromptKey, ...]:
        """The same with the model whose text encoders read them."""
        return tuple(PromptKey(self.model, prompt) for prompt in self.prompts)

    def expand(self, query: Query) -> list[Row]:
        """The rows of a query; the negative one is asked without guidance too where the solver wants it."""
        prompts = (self.negative, self.positive) if query.unconditional else self.prompts
        return [Row(query.x, query.level, PromptKey(self.model, prompt)) for prompt in prompts]

    def combine(self, denoised: Sequence[Latent]) -> DenoisedPrediction:
        """The guided prediction from the answers to `expand`, in its order."""
        if len(denoised) == 1:
            return DenoisedPrediction(denoised[0])
        negative, positive = denoised
        return DenoisedPrediction(negative + self.cfg * (positive - negative), negative)
