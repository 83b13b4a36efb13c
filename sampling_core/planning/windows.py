"""Windows of regions: what their models allow, where they lie, and what a plan says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from prefect_regional_diffusion.sampling_core.engine.guidance import Guidance
from prefect_regional_diffusion.sampling_core.engine.joint_run import Crop, PlanPhase
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob, ResolvedRegion
from prefect_regional_diffusion.sampling_core.job.resolved_window import ResolvedWindow
from prefect_regional_diffusion.sampling_core.masks.windows import WindowSize, window_around
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Facts
from prefect_regional_diffusion.sampling_core.tensors.types import Mask
from prefect_regional_diffusion.sampling_core.tensors.window import Lattice

MOST_OF_CANVAS = Fraction(3, 4)
"""`auto` uses a window of at most this share: a larger one saves little, and costs a forward of its own."""


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
    job: ResolvedJob, phases: Sequence[PlanPhase], guidances: Sequence[Guidance], lattice: Lattice
) -> tuple[list[Crop | None], list[str]]:
    """The crop of the base and of each region (None: the whole canvas), and one sentence on each distinct window.

    `phases` and `guidances` are of the same participants; `lattice` is the canvas in latent cells.
    """
    crops, names_by_sentence = list[Crop | None]([None]), dict[str, list[str]]()
    for i, region in enumerate(job.regions):
        weights = [weight for phase in phases if (weight := phase.weights[i + 1]) is not None]
        crop, sentence = _crop(region.window, weights, guidances[i + 1], lattice, job.height // lattice[0])
        crops.append(crop)
        if sentence:
            names_by_sentence.setdefault(sentence, []).append(region.name)
    return crops, [f"{', '.join(names)}: {sentence}" for sentence, names in names_by_sentence.items()]


def _crop(
    settings: ResolvedWindow | None, weights: Sequence[Mask], guidance: Guidance, lattice: Lattice, cell: int
) -> tuple[Crop | None, str]:
    """The crop of a region with these weights in its phases, and a sentence on it; `cell` is in pixels."""
    if settings is None or not weights:
        return None, ""
    if settings.least_pixels is None:
        return None, "the whole canvas, because the model or a control takes no part of it (window: auto)"
    size = WindowSize(-(-settings.margin // cell), -(-settings.least_pixels // cell), max(1, settings.multiple // cell))
    window = window_around(weights, size)
    share = Fraction(1) if window is None else window.share(lattice)
    if window is None or (settings.auto and share > MOST_OF_CANVAS):
        return None, f"the whole canvas, because its window would be {float(share):.0%} of it"
    part = Canvas(window.width * cell, window.height * cell)
    when = f" after {settings.full_steps} steps" if settings.full_steps else ""
    guidance_within = guidance.within(window.top * cell, window.left * cell, part)
    crop = Crop(window, guidance_within, settings.full_steps, settings.one_place)
    return crop, f"{part.width} x {part.height} pixels{when}, {float(share):.0%} of the canvas"


def check_full_steps(job: ResolvedJob, steps: int) -> None:
    """Raise BadInput for windows that no step of a schedule is left for."""
    for i, region in enumerate(job.regions):
        if region.window is not None and region.window.full_steps >= steps:
            field = f"{window_field(i, region)}.full_steps"
            raise BadInput(field, region.window.full_steps, f"at most {steps - 1}")
