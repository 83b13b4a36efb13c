"""Windows of regions: what their models allow, where they lie, and what a plan says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.engine.batching import evaluate
from prefect_regional_diffusion.sampling_core.engine.guidance import Guidance, Request
from prefect_regional_diffusion.sampling_core.engine.joint_run import Crop, PlanPhase
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob, ResolvedRegion
from prefect_regional_diffusion.sampling_core.job.resolved_window import ResolvedWindow
from prefect_regional_diffusion.sampling_core.masks.windows import WindowSize, window_around
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Facts
from prefect_regional_diffusion.sampling_core.planning.counting import counting_context
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers import DenoiseRequest
from prefect_regional_diffusion.sampling_core.tensors.types import Mask
from prefect_regional_diffusion.sampling_core.tensors.window import Lattice

LEAST_SAVED = Fraction(1, 4)
"""`auto` uses a window that saves at least this much of an evaluation of the canvas; less is not worth a forward."""


def window_field(index: int, region: ResolvedRegion) -> str:
    """The field in which somebody wrote the window of a region."""
    return "window" if "window" in region.inherited else f"regions.{index}.window"


def fit_window(job: ResolvedJob, index: int, facts: Mapping[str, Facts]) -> ResolvedWindow | None:
    """A region's window with the limits of its models; `facts` are by model.

    Raises BadInput for an explicit window of a model that takes whole canvases only.
    """
    region = job.regions[index]
    window = region.window
    if window is None:
        return None
    models = [region.settings.model, *([] if job.refiner is None else [job.refiner.model])]
    least, multiple, one_place = 0, 1, False
    for model_facts in (facts[model] for model in models):
        if model_facts.partial is None:
            if not window.auto:
                allowed = f"canvas or auto: {model_facts.family} takes whole canvases only"
                raise BadInput(window_field(index, region), window.written, allowed)
            return window._replace(least_pixels=None)
        least = max(least, model_facts.partial.least_pixels)
        multiple = math.lcm(multiple, model_facts.partial.multiple)
        one_place |= model_facts.partial.one_place
    return window._replace(least_pixels=least, multiple=multiple, one_place=one_place)


def crops_of(
    job: ResolvedJob,
    phases: Sequence[PlanPhase],
    guidances: Sequence[Guidance],
    sigma_levels: Sequence[Level],
    lattice: Lattice,
) -> tuple[list[Crop | None], list[str]]:
    """The crop of the base and of each region (None: the whole canvas), and one sentence on each distinct window.

    `phases` and `guidances` are of the same participants; `lattice` is the canvas in latent cells.
    """
    cell, crops = job.height // lattice[0], list[Crop | None]([None])
    weights = [[weight for phase in phases if (weight := phase.weights[i]) is not None] for i in range(len(guidances))]
    for region, guidance, of_region in zip(job.regions, guidances[1:], weights[1:], strict=True):
        crops.append(_crop(region.window, of_region, guidance, lattice, cell))
    chosen = _worth_it(job, crops, Evaluated(phases, guidances, sigma_levels, lattice))
    names_by_sentence = dict[str, list[str]]()
    for region, of_region, possible, crop in zip(job.regions, weights[1:], crops[1:], chosen[1:], strict=True):
        if region.window is not None and of_region:
            sentence = _sentence(region.window, possible, crop, lattice, cell)
            names_by_sentence.setdefault(sentence, []).append(region.name)
    return chosen, [f"{', '.join(names)}: {sentence}" for sentence, names in names_by_sentence.items()]


def _crop(
    settings: ResolvedWindow | None, weights: Sequence[Mask], guidance: Guidance, lattice: Lattice, cell: int
) -> Crop | None:
    """The crop of a region with these weights in its phases, if it can have one; `cell` is in pixels."""
    if settings is None or settings.least_pixels is None or not weights:
        return None
    size = WindowSize(-(-settings.margin // cell), -(-settings.least_pixels // cell), max(1, settings.multiple // cell))
    window = window_around(weights, size)
    if window is None:
        return None
    part = Canvas(window.width * cell, window.height * cell)
    guidance_within = guidance.within(window.top * cell, window.left * cell, part)
    return Crop(window, guidance_within, settings.full_steps, settings.one_place)


class Evaluated(NamedTuple):
    """What decides how much work a step is."""

    phases: Sequence[PlanPhase]
    guidances: Sequence[Guidance]
    sigma_levels: Sequence[Level]
    lattice: Lattice

    def work(self, crops: Sequence[Crop | None], index: int) -> Fraction:
        """Evaluations of the canvas in the step that this participant takes with most others, each asked once."""
        phases = [phase for phase in self.phases if phase.weights[index] is not None]
        phase = max(phases, key=lambda phase: sum(weight is not None for weight in phase.weights))
        query = DenoiseRequest(torch.empty(1, 0, *self.lattice), self.sigma_levels[phase.first])
        requests = [
            Request(query, guidance) if crop is None else Request(query, crop.guidance, crop.window)
            for guidance, crop, weight in zip(self.guidances, crops, phase.weights, strict=True)
            if weight is not None
        ]
        prompts = {key for request in requests for key in request.guidance.prompt_keys}
        return evaluate(requests, counting_context(prompts, {}))[1].canvases


def _worth_it(job: ResolvedJob, crops: Sequence[Crop | None], evaluated: Evaluated) -> list[Crop | None]:
    """The crops without those of `auto` that save too little, the largest ones first.

    A whole row may share its negative row with others, where a window has one of its own.
    """
    chosen = list(crops)
    automatic = [
        (crop.window.share(evaluated.lattice), i)
        for i, (region, crop) in enumerate(zip(job.regions, crops[1:], strict=True), start=1)
        if crop is not None and region.window is not None and region.window.auto
    ]
    for _, i in sorted(automatic, reverse=True):
        without = [None if k == i else crop for k, crop in enumerate(chosen)]
        if evaluated.work(without, i) - evaluated.work(chosen, i) < LEAST_SAVED:
            chosen = without
    return chosen


def _sentence(settings: ResolvedWindow, possible: Crop | None, crop: Crop | None, lattice: Lattice, cell: int) -> str:
    """What a region's window is, or why there is none."""
    if settings.least_pixels is None:
        return "the whole canvas, because the model or a control takes no part of it (window: auto)"
    if possible is None:
        least = f" (its model takes no less than {settings.least_pixels} pixels)" if settings.least_pixels else ""
        return f"the whole canvas, because its window would be all of it{least}"
    share = f"{float(possible.window.share(lattice)):.0%}"
    if crop is None:
        return (
            f"the whole canvas, because a window of {share} would save less than {float(LEAST_SAVED):.2g} evaluations "
            "of the canvas a step (window: auto)"
        )
    when = f" after {settings.full_steps} steps" if settings.full_steps else ""
    return f"{crop.window.width * cell} x {crop.window.height * cell} pixels{when}, {share} of the canvas"


def check_full_steps(job: ResolvedJob, steps: int) -> None:
    """Raise BadInput for windows that no step of a schedule is left for."""
    for i, region in enumerate(job.regions):
        if region.window is not None and region.window.full_steps >= steps:
            field = f"{window_field(i, region)}.full_steps"
            raise BadInput(field, region.window.full_steps, f"at most {steps - 1}")
