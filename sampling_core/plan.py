"""RenderJob + masks -> Plan, and what the plan will cost, known before any weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from sampling_core import masks as draw
from sampling_core._types import Latent, Mask, Photo, PixelMask, RowEmbeddings, Rows
from sampling_core.draws import NoNoise
from sampling_core.errors import BadInput
from sampling_core.evaluate import Count
from sampling_core.guidance import Guidance
from sampling_core.job import Region, RenderJob
from sampling_core.levels import Level, ModelLevels
from sampling_core.noise import add_noise, initial_noise
from sampling_core.regions import partition_of_unity
from sampling_core.sampler import Participant, Plan, State, iterate, start
from sampling_core.schedules import ladder
from sampling_core.shapes import ColorMap, Ellipse, Image, Polygon, Rectangle
from sampling_core.solvers import solver_named


def region_masks(job: RenderJob, photos: Mapping[str, Photo], cell: int) -> tuple[Mask, ...]:
    """Each region's mask on the latent lattice, feathered. `photos` holds the mask files by path.

    Raises BadInput for a canvas that is no multiple of the cell, and for regions that are empty or
    smaller than one latent cell.
    """
    for name, pixels in (("width", job.width), ("height", job.height)):
        if pixels % cell:
            raise BadInput(name, pixels, f"a multiple of {cell} for this model")
    built: list[Mask] = []
    for i, region in enumerate(job.regions):
        mask = _pixels((job.height, job.width), region, photos)
        draw.check_extent(mask, cell, f"regions.{i}.mask", region.mask.model_dump(exclude={"kind"}))
        built.append(draw.to_lattice(draw.feathered(mask, region.feather), cell))
    return tuple(built)


def _pixels(size: draw.Size, region: Region, photos: Mapping[str, Photo]) -> PixelMask:
    match region.mask:
        case Rectangle() as shape:
            return draw.rectangle(size, shape.x, shape.y, shape.width, shape.height)
        case Ellipse() as shape:
            return draw.ellipse(size, shape.center_x, shape.center_y, shape.radius_x, shape.radius_y)
        case Polygon() as shape:
            return draw.polygon(size, shape.points)
        case Image() as shape:
            return draw.from_image(size, photos[shape.image])
        case ColorMap() as shape:
            return draw.from_color_map(size, photos[shape.color_map], shape.color)


def make_plan(job: RenderJob, levels: ModelLevels, cell: int, masks: Sequence[Mask]) -> Plan:
    """The run that a job means. A participant whose weight is zero everywhere takes no part.

    `masks` are `region_masks`, one per region, on a lattice of `cell` pixels.
    """
    everywhere = torch.ones(job.height // cell, job.width // cell)
    base_weight, weights = (
        partition_of_unity(masks, [region.weight if len(masks) > 1 else 1.0 for region in job.regions])
        if masks
        else (everywhere, ())
    )
    rungs = ladder(levels, job.scheduler, job.steps, job.denoise)
    # Without regions, the base has all steps to itself: some schedules have more or fewer than were asked for.
    base_only_steps = min(job.base_only_steps, len(rungs) - 1) if job.regions else len(rungs) - 1
    base = _participant(job, None, "base", everywhere, base_weight)
    regions = [
        _participant(job, region, region.name or f"region {i + 1}", None, weight)
        for i, (region, weight) in enumerate(zip(job.regions, weights, strict=True))
    ]
    return Plan(rungs, base_only_steps, (base, *regions), levels, NoNoise())


def _participant(job: RenderJob, region: Region | None, name: str, base_only: Mask | None, weight: Mask) -> Participant:
    sampler, cfg, negative = job.settings_of(region)
    return Participant(
        name=name,
        guidance=Guidance(cfg, job.prompt if region is None else region.prompt, negative),
        solver=solver_named(sampler),
        base_only_weight=base_only,
        regional_weight=weight if bool((weight > 0).any()) else None,
    )


def first_state(job: RenderJob, plan: Plan, levels: ModelLevels, channels: int, cell: int) -> State:
    """The noised empty latent [1, channels, height / cell, width / cell] that the run starts from."""
    noise = initial_noise(job.seed, (1, channels, job.height // cell, job.width // cell))
    return start(plan, add_noise(torch.zeros_like(noise), noise, plan.ladder[0], levels))


@dataclass(frozen=True)
class Cost:
    """What a plan asks of the network: rows and calls, in all and by step."""

    per_step: tuple[Count, ...]

    @property
    def evaluations(self) -> int:
        return sum(count.evaluations for count in self.per_step)

    @property
    def forwards(self) -> int:
        return sum(count.forwards for count in self.per_step)

    @property
    def most_rows(self) -> int:
        """Rows of the largest forward."""
        return max(-(-count.evaluations // count.forwards) for count in self.per_step)

    def runs(self) -> list[tuple[int, int, Count]]:
        """Stretches of equal steps as (first step, last step, count of each); steps count from 1."""
        grouped = groupby(enumerate(self.per_step, start=1), key=lambda pair: pair[1])
        stretches = [(list(pairs), count) for count, pairs in grouped]
        return [(pairs[0][0], pairs[-1][0], count) for pairs, count in stretches]


class _NoNetwork:
    """Answers every query with its own input: the loop runs, and nothing is computed."""

    def __call__(self, x: Rows, levels: Sequence[Level], embeddings: RowEmbeddings) -> Rows:
        return x


def cost(plan: Plan) -> Cost:
    """Counted, not calculated: the sampler's own loop is driven without a network, on one channel."""
    _, anywhere = next(iter(plan.active(0).values()))
    nothing: Latent = torch.zeros(1, 1, *anywhere.shape)
    embeddings = {prompt: torch.zeros(1, 1, 1) for prompt in plan.prompts}
    return Cost(tuple(count for _, count in iterate(plan, start(plan, nothing), _NoNetwork(), embeddings)))


def warnings(job: RenderJob, plan: Plan, trained_pixels: int) -> list[str]:
    """What a person should know before spending a GPU on this; `trained_pixels` is the model's canvas edge."""
    found: list[str] = []
    if job.denoise < 1:
        found.append("denoise is below 1 and there is no start image: the picture will be flat")
    if all(0 not in plan.active(step) for step in range(plan.steps)):
        found.append("prompt: the regions cover the canvas from the first step, so the base prompt is never used")
    for name, pixels in (("width", job.width), ("height", job.height)):
        if not trained_pixels / 2 <= pixels <= trained_pixels * 2:
            found.append(f"{name} {pixels} is far from the {trained_pixels} pixels that the model was trained on")
    return found
