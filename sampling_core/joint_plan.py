"""A job with joint composition -> its run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sampling_core._types import Mask
from sampling_core.composition import Joint
from sampling_core.draws import StepNoise, span
from sampling_core.guidance import Guidance
from sampling_core.job import Region, RenderJob
from sampling_core.levels import ModelLevels
from sampling_core.noise import add_noise, initial_noise
from sampling_core.regions import partition_of_unity
from sampling_core.sampler import Participant, Plan
from sampling_core.schedules import ladder
from sampling_core.solvers import CFG_PP, solver_named


def joint(job: RenderJob, levels: ModelLevels, channels: int, cell: int, masks: Sequence[Mask]) -> Joint:
    """The run, from the noised empty latent. A participant whose weight is zero everywhere takes no part.

    `masks` are `region_masks`, one per region, on a lattice of `cell` pixels. Raises BadInput for
    a schedule that does not suit the model.
    """
    shape = (job.pictures, channels, job.height // cell, job.width // cell)
    everywhere = torch.ones(shape[2:])
    base_weight, weights = (
        partition_of_unity(masks, [region.weight if len(masks) > 1 else 1.0 for region in job.regions])
        if masks
        else (everywhere, ())
    )
    rungs = ladder(levels, job.scheduler, job.steps, job.denoise)
    # Without regions, the base has all steps to itself: some schedules have more or fewer than were asked for.
    base_only_steps = min(job.first_steps, len(rungs) - 1) if job.regions else len(rungs) - 1
    base = _participant(job, None, "base", everywhere, base_weight)
    regions = [
        _participant(job, region, region.name or f"region {i + 1}", None, weight)
        for i, (region, weight) in enumerate(zip(job.regions, weights, strict=True))
    ]
    plan = Plan(rungs, base_only_steps, (base, *regions), levels, StepNoise(shape, job.seed, *span(rungs)))
    noise = initial_noise(job.seed, shape, job.batch_index or None)
    return Joint(plan, add_noise(torch.zeros_like(noise), noise, rungs[0], levels), job.model)


def _participant(job: RenderJob, region: Region | None, name: str, base_only: Mask | None, weight: Mask) -> Participant:
    sampler, cfg, negative = job.settings_of(region)
    prompt = job.prompt if region is None else region.prompt
    return Participant(
        name=name,
        guidance=Guidance(cfg, prompt, negative, sampler in CFG_PP),
        solver=solver_named(sampler),
        base_only_weight=base_only,
        regional_weight=weight if bool((weight > 0).any()) else None,
    )
