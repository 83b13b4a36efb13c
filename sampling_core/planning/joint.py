"""A job with joint or attention composition -> its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from prefect_regional_diffusion.sampling_core.engine.guidance import Guidance
from prefect_regional_diffusion.sampling_core.engine.joint_run import InpaintConstraint, Participant, Plan, PlanPhase
from prefect_regional_diffusion.sampling_core.engine.joint_sampling_run import JointSamplingRun
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.masks.region_weights import (
    by_order,
    by_weight,
    hard_partition,
    stack_below,
)
from prefect_regional_diffusion.sampling_core.noise.initial import InitialNoise, Variation, add_noise
from prefect_regional_diffusion.sampling_core.noise.step_noise import ComfyNoise, CounterBasedNoise, Shape, span
from prefect_regional_diffusion.sampling_core.planning.arrangement import (
    MemberShare,
    by_group,
    groups_of,
    guidance_changes,
    told_of,
    without_windows,
)
from prefect_regional_diffusion.sampling_core.planning.model_fit import guidance_of
from prefect_regional_diffusion.sampling_core.planning.windows import check_full_steps, crops_of
from prefect_regional_diffusion.sampling_core.schedules import sigma_schedule
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS, Noise
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Mask


def joint(
    job: ResolvedJob, levels: ModelLevels, clean: Latent, masks: Sequence[Mask], protected: Mask | None = None
) -> JointSamplingRun:
    """The run, from the noised `clean` latent [b, c, h, w]. Whose weight is zero everywhere takes no part.

    `masks` are `region_masks`, one per region, [h, w]; cells that are `protected` stay as they are in `clean`.
    Raises BadInput for a schedule that does not suit the model, and for steps beyond its end.
    """
    batch, channels, rows, columns = clean.shape
    shape = (batch, channels, rows, columns)
    sigma_levels = sigma_schedule(levels, job.base.scheduler, job.steps, job.denoise)
    sigmas = [level.sigma for level in sigma_levels]
    check_full_steps(job, len(sigma_levels) - 1)
    kinds = [_kind(settings.sampler) for settings in job.participants]
    phases = _phases(job, masks, kinds, sigma_levels, shape)
    guidances = [guidance_of(settings, job, sigmas) for settings in job.participants]
    names = ("base", *(region.name for region in job.regions))
    groups = groups_of(job, guidances)
    whole = without_windows(job, groups)
    crops, sentences = crops_of(whole, phases, guidances, sigma_levels, (rows, columns))

    def guided(shares: tuple[MemberShare, ...]) -> Guidance:
        return guidance_of(shares[0].settings, job, sigmas, shares)

    participants = list[Participant]()
    for group in groups:
        first = group[0]
        solver = SOLVERS[job.participants[first].sampler]
        participant = Participant(names[first], guidances[first], solver, crops[first])
        changes = guidance_changes(group, phases, job.participants, guided) if len(group) > 1 else ()
        if changes:
            name = ", ".join(names[i] for i in group)
            participant = replace(participant, name=name, guidance=changes[0].guidance, changes=changes[1:])
        participants.append(participant)
    group_phases = _with_resets([by_group(phase, groups) for phase in phases], kinds_differ=len(set(kinds)) > 1)
    noise = _initial_noise(job, masks, shape)
    noise_latent = noise.draw()
    inpaint = None if protected is None else InpaintConstraint(_seam(protected, kinds), clean, noise_latent)
    plan = Plan(sigma_levels, group_phases, tuple(participants), levels, _noise(job, shape, sigma_levels), inpaint)
    noised = add_noise(clean, noise_latent, sigma_levels[0], levels)
    told = told_of(groups, names)
    return JointSamplingRun(plan, noised, (noise, clean), tuple(sentences), told, len(job.regions))


def _kind(sampler: str) -> str:
    """Samplers of a kind carry the same noise at every level: all that draw none, or the same one twice."""
    return "deterministic" if SOLVERS[sampler].order > 0 else sampler


def _phases(
    job: ResolvedJob, masks: Sequence[Mask], kinds: Sequence[str], sigma_levels: Sequence[Level], shape: Shape
) -> tuple[PlanPhase, ...]:
    """Who of the base and all regions takes part from which step on. Some schedules have more or fewer steps than were
    asked for.
    """
    steps = len(sigma_levels) - 1
    step_ranges: list[tuple[int, int]] = []
    for i, region in enumerate(job.regions):
        is_default = "start_at_step" in region.inherited
        first = min(region.start_at_step, steps) if is_default else region.start_at_step
        last = steps if region.end_at_step is None else region.end_at_step
        for name, value, most in (
            ("start_at_step", first, steps if is_default else steps - 1),
            ("end_at_step", last, steps),
        ):
            if value > most:
                raise BadInput(f"regions.{i}.{name}", value, f"at most {most}")
        step_ranges.append((first, last))
    phases: list[PlanPhase] = []
    everywhere, last_present = torch.ones(shape[2:]), None
    for step in sorted({0, *(step for step_range in step_ranges for step in step_range if step < steps)}):
        present = [i for i, (first, last) in enumerate(step_ranges) if first <= step < last]
        if present == last_present:
            continue
        last_present = present
        weights: list[Mask | None] = [None] * (len(step_ranges) + 1)
        base, shares = _shares(job, masks, present, everywhere)
        taking_part = [0, *(i + 1 for i in present)]
        partition = hard_partition((base, *shares), [kinds[i] for i in taking_part])
        for i, weight in zip(taking_part, partition, strict=True):
            weights[i] = weight if bool((weight > 0).any()) else None
        drawn = frozenset(i for i, weight in enumerate(weights) if weight is not None)
        phases.append(PlanPhase(step, tuple(weights), drawn=drawn))
    return tuple(phases)


def _with_resets(phases: Sequence[PlanPhase], *, kinds_differ: bool) -> tuple[PlanPhase, ...]:
    """The phases, in which those begin without a history that gain cells, if there are several kinds of noise."""
    resets = [
        _gaining(before.weights, phase.weights) if kinds_differ else frozenset[int]()
        for before, phase in pairwise(phases)
    ]
    return (phases[0], *(phase._replace(reset_history=reset) for phase, reset in zip(phases[1:], resets, strict=True)))


def _gaining(weights_before: Sequence[Mask | None], weights_after: Sequence[Mask | None]) -> frozenset[int]:
    """Participants that gain cells: other samplers may have left noise of another kind there."""
    pairs = [(i, old, new) for i, (old, new) in enumerate(zip(weights_before, weights_after, strict=True))]
    return frozenset(
        i for i, old, new in pairs if old is not None and new is not None and bool(((old == 0) & (new > 0)).any())
    )


def _shares(
    job: ResolvedJob, masks: Sequence[Mask], present: Sequence[int], everywhere: Mask
) -> tuple[Mask, tuple[Mask, ...]]:
    """The weights of the base and of the regions that are present, by the job's rule for overlaps."""
    upper = [i for i in present if job.regions[i].weight > 0]
    lower = [i for i in present if job.regions[i].weight == 0]
    base, shares = everywhere, tuple[Mask, ...]()
    if upper and job.overlap == "order":
        base, shares = by_order([masks[i] for i in upper])
    elif upper:
        base, shares = by_weight([masks[i] for i in upper], _weights(job, upper))
    if lower:
        base, shares = stack_below((base, shares), by_weight([masks[i] for i in lower], [1.0] * len(lower)))
    share = dict(zip([*upper, *lower], shares, strict=True))
    return base, tuple(share[i] for i in present)


def _weights(job: ResolvedJob, regions: Sequence[int]) -> list[float]:
    """The weights of some regions; one alone has nothing to share, and no weight to be rounded by."""
    return [job.regions[i].weight if len(regions) > 1 else 1.0 for i in regions]


def _seam(protected: Mask, kinds: Sequence[str]) -> Mask:
    """Protected cells keep their noise, so beside samplers that draw new noise their edge is hard."""
    return protected if set(kinds) == {"deterministic"} else (protected >= 0.5).to(protected.dtype)


def _initial_noise(job: ResolvedJob, masks: Sequence[Mask], shape: Shape) -> InitialNoise:
    """ComfyUI's noise of the job's seed, varied inside the regions that ask for it."""
    indices = [i for i, region in enumerate(job.regions) if region.variation_strength > 0]
    _, shares = _shares(job, masks, indices, torch.ones(shape[2:]))
    regions = [job.regions[i] for i in indices]
    variations = tuple(
        Variation(share, region.variation_seed, region.variation_strength, region.variation_method)
        for region, share in zip(regions, shares, strict=True)
    )
    return InitialNoise(job.seed, shape, job.batch_index or None, variations)


def _noise(job: ResolvedJob, shape: Shape, sigma_levels: tuple[Level, ...]) -> Noise:
    if job.noise == "comfyui":
        draws = max(SOLVERS[settings.sampler].draws for settings in job.participants)
        return ComfyNoise(shape, job.seed, draws, *span(sigma_levels))
    return CounterBasedNoise(shape, job.seed, job.batch_index or range(job.batch_size), *span(sigma_levels))
