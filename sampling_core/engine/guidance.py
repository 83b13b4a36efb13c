"""Guidance: which rows a query needs, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.engine.prompt_map import PromptMap
from prefect_regional_diffusion.sampling_core.models.family import Canvas, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.model_key import NO_ADAPTERS, AdapterKeys, LoraKeys
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers.base import DenoisedPrediction, DenoiseRequest
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Mask
from prefect_regional_diffusion.sampling_core.tensors.window import Window


class PromptKey(NamedTuple):
    """A prompt, the model whose text encoders read it with its LoRAs, sizes if they are an input of the model, and the
    prompt's dialect.

    The prompt is None for an empty negative one of a family in which that is no prompt at all.
    """

    model: str
    prompt: str | None
    sizes: SizeConditioning | None = None
    syntax: PromptSyntax = "plain"
    loras: LoraKeys = ()


class PromptShare(NamedTuple):
    """One of several prompts of a row: its weight [h, w] at each cell of the canvas."""

    key: PromptKey
    weight: Mask


class Row(NamedTuple):
    """One network input: a latent, its level, the prompt it is conditioned on, the scale that the model is told, and
    what the row has beside these.

    The prompt's LoRAs are among its adapters: they act on text encoders and denoiser.
    """

    x: Latent
    level: Level
    prompt: PromptKey
    guidance: float | None = None
    adapters: AdapterKeys = NO_ADAPTERS
    window: Window | None = None
    """The part of the latent that the network sees; None: all of it."""
    one_place: bool = False
    """Rows of other windows have forwards of their own."""
    shares: tuple[PromptShare, ...] = ()
    """The prompts that share the row, `prompt` first; their weights sum to 1 at every cell. Empty: `prompt` alone."""


class ClassifierFreeGuidance(NamedTuple):
    """Guidance towards `positive` and away from `negative` with strength `cfg`; at 1 only `positive` is asked.

    (Ho & Salimans 2022.) A `negative` of None is no prompt at all.
    """

    cfg: float
    positive: str
    negative: str | None
    always_both: bool = False
    """The sampler asks for the unconditional prediction too, also where guidance is off."""
    model: str = ""
    sizes: SizeConditioning | None = None
    syntax: PromptSyntax = "plain"
    adapters: AdapterKeys = NO_ADAPTERS
    negative_sizes: SizeConditioning | None = None
    """Of rows with the negative prompt, where they are other ones."""
    positive_map: PromptMap | None = None
    """Prompts that share the positive row, `positive` first; None: that one alone."""
    negative_map: PromptMap | None = None
    """The same of the negative row."""

    @property
    def prompts(self) -> tuple[str | None, ...]:
        """The prompts that queries are evaluated with, the first of each row."""
        if math.isclose(self.cfg, 1.0) and not self.always_both:
            return (self.positive,)
        return (self.negative, self.positive)

    @property
    def prompt_keys(self) -> tuple[PromptKey, ...]:
        """All prompts of all rows, with the model whose text encoders read them."""
        negative = self._row_keys(negative=True) if len(self.prompts) > 1 else ()
        return (*negative, *self._row_keys(negative=False))

    @property
    def models(self) -> tuple[tuple[str, AdapterKeys], ...]:
        """The model, and what its rows have beside their prompts."""
        return ((self.model, self.adapters),)

    def expand(self, query: DenoiseRequest) -> list[Row]:
        """The rows of a query; the negative one is asked without guidance too where the solver wants it."""
        asks_both = query.unconditional or len(self.prompts) > 1
        return [self._row(query, negative=negative) for negative in ([True, False] if asks_both else [False])]

    def within(self, top: int, left: int, canvas: Canvas) -> ClassifierFreeGuidance:
        """The same for rows that show a part of the canvas, in pixels."""
        sizes, negative = (one and one.within(top, left, canvas) for one in (self.sizes, self.negative_sizes))
        return self._replace(sizes=sizes, negative_sizes=negative)

    def combine(self, denoised: Sequence[Latent]) -> DenoisedPrediction:
        """The guided prediction from the answers to `expand`, in its order."""
        if len(denoised) == 1:
            return DenoisedPrediction(denoised[0])
        negative, positive = denoised
        return DenoisedPrediction(negative + self.cfg * (positive - negative), negative)

    def _row(self, query: DenoiseRequest, *, negative: bool) -> Row:
        keys, adapters = self._row_keys(negative=negative), self.adapters.at(query.level.sigma, negative=negative)
        shares = _shares(keys, self.negative_map if negative else self.positive_map)
        return Row(query.x, query.level, keys[0], adapters=adapters, shares=shares)

    def _row_keys(self, *, negative: bool) -> tuple[PromptKey, ...]:
        """Of the prompts of a row."""
        prompt, prompt_map = (self.negative, self.negative_map) if negative else (self.positive, self.positive_map)
        sizes = self.negative_sizes if negative and self.negative_sizes is not None else self.sizes
        return tuple(
            PromptKey(self.model, prompt, sizes, syntax=self.syntax, loras=self.adapters.loras)
            for prompt in ((prompt,) if prompt_map is None else prompt_map.prompts)
        )


class EmbeddedGuidance(NamedTuple):
    """Guidance that was distilled into the model: it is told the scale, and asked once (Meng et al. 2023)."""

    scale: float
    positive: str
    model: str
    sizes: SizeConditioning | None = None
    syntax: PromptSyntax = "plain"
    adapters: AdapterKeys = NO_ADAPTERS
    positive_map: PromptMap | None = None
    """Prompts that share the row, `positive` first; None: that one alone."""

    @property
    def prompts(self) -> tuple[str | None, ...]:
        """The prompt that queries are evaluated with, the first of the row."""
        return (self.positive,)

    @property
    def prompt_keys(self) -> tuple[PromptKey, ...]:
        """All prompts of the row, with the model whose text encoders read them."""
        prompts = (self.positive,) if self.positive_map is None else self.positive_map.prompts
        return tuple(
            PromptKey(self.model, prompt, self.sizes, syntax=self.syntax, loras=self.adapters.loras)
            for prompt in prompts
        )

    @property
    def models(self) -> tuple[tuple[str, AdapterKeys], ...]:
        """The model, and what its rows have beside their prompts."""
        return ((self.model, self.adapters),)

    def expand(self, query: DenoiseRequest) -> list[Row]:
        """The row of a query. Raises ValueError for one that asks for the unconditional prediction: there is none."""
        if query.unconditional:
            raise ValueError("a model with embedded guidance has no unconditional prediction")
        keys, adapters = self.prompt_keys, self.adapters.at(query.level.sigma)
        shares = _shares(keys, self.positive_map)
        return [Row(query.x, query.level, keys[0], self.scale, adapters, shares=shares)]

    def within(self, top: int, left: int, canvas: Canvas) -> EmbeddedGuidance:
        """The same for rows that show a part of the canvas, in pixels."""
        return self._replace(sizes=self.sizes and self.sizes.within(top, left, canvas))

    def combine(self, denoised: Sequence[Latent]) -> DenoisedPrediction:
        """The answer to `expand`."""
        return DenoisedPrediction(denoised[0])


class ExpertGuidance(NamedTuple):
    """An ensemble of expert denoisers: one network down to a noise level, a second one below (Balaji et al. 2022).

    Both are guided by the same prompts with the same strength.
    """

    upper: ClassifierFreeGuidance
    lower: ClassifierFreeGuidance
    sigma: float
    """Queries at this noise level and below are the second network's."""

    @property
    def model(self) -> str:
        """The model of the first network."""
        return self.upper.model

    @property
    def prompts(self) -> tuple[str | None, ...]:
        """The prompts that queries are evaluated with."""
        return self.upper.prompts

    @property
    def prompt_keys(self) -> tuple[PromptKey, ...]:
        """The same with the models whose text encoders read them."""
        return (*self.upper.prompt_keys, *self.lower.prompt_keys)

    @property
    def models(self) -> tuple[tuple[str, AdapterKeys], ...]:
        """Both models, and what their rows have beside their prompts."""
        return (*self.upper.models, *self.lower.models)

    def expand(self, query: DenoiseRequest) -> list[Row]:
        """The rows of a query, which are one network's alone."""
        return (self.lower if query.level.sigma <= self.sigma else self.upper).expand(query)

    def within(self, top: int, left: int, canvas: Canvas) -> ExpertGuidance:
        """The same for rows that show a part of the canvas, in pixels."""
        return self._replace(upper=self.upper.within(top, left, canvas), lower=self.lower.within(top, left, canvas))

    def combine(self, denoised: Sequence[Latent]) -> DenoisedPrediction:
        """The guided prediction from the answers to `expand`, in its order."""
        return self.upper.combine(denoised)


def _shares(keys: Sequence[PromptKey], prompt_map: PromptMap | None) -> tuple[PromptShare, ...]:
    """What the prompts of a row have of the canvas."""
    return () if prompt_map is None else tuple(map(PromptShare, keys, prompt_map.weights))


Guidance = ClassifierFreeGuidance | EmbeddedGuidance | ExpertGuidance
"""How a participant is guided."""


class Request(NamedTuple):
    """What a solver asks, how the answer is guided, and which part of the latent the network sees (None: all of it)."""

    query: DenoiseRequest
    guidance: Guidance
    window: Window | None = None
    one_place: bool = False
    """Its rows share forwards with those of the same window alone."""

    def rows(self) -> list[Row]:
        """The rows that answer it, as `guidance` combines them."""
        return [row._replace(window=self.window, one_place=self.one_place) for row in self.guidance.expand(self.query)]
