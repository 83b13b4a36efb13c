"""ResolvedJob + masks -> its run, and what the run will cost, known before any weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from typing import Any

from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import Count
from prefect_regional_diffusion.sampling_core.engine.joint_sampling_run import JointSamplingRun
from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.planning.counting import counting_context
from prefect_regional_diffusion.sampling_core.planning.joint import joint
from prefect_regional_diffusion.sampling_core.planning.prompt_signs import sign_warnings
from prefect_regional_diffusion.sampling_core.planning.sequential import sequential
from prefect_regional_diffusion.sampling_core.planning.unencoded import Unencoded
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask, Latent, Mask


def compose(
    job: ResolvedJob,
    levels: Mapping[str, ModelLevels],
    clean: Latent,
    masks: Sequence[AnyMask],
    protected: Mask | None = None,
) -> SamplingRun[Any]:
    """The run that a job means, from the latent [b, c, h, w] that it starts with (zeros: noise alone).

    `levels` are by model; `masks` are the job's `region_masks`; `protected` is on the latent lattice.
    Raises BadInput for what cannot be composed.
    """
    if job.composition == "sequential":
        return sequential(job, levels, clean, masks)
    if job.arrangement == "auto":
        return _least_work(job, levels[job.base.model], clean, masks, protected)
    return joint(job, levels[job.base.model], clean, masks, protected)


def _least_work(
    job: ResolvedJob, levels: ModelLevels, clean: Latent, masks: Sequence[Mask], protected: Mask | None
) -> JointSamplingRun:
    """The run in the arrangement that evaluates least of the canvas: rows of their own, unless sharing them saves."""
    rows, attention = (
        joint(replace(job, arrangement=arrangement), levels, clean, masks, protected)
        for arrangement in ("rows", "attention")
    )
    work_of_rows, work_of_attention = cost(rows).canvases, cost(attention).canvases
    saves = work_of_attention < work_of_rows
    reason = (
        f"as it is {float(work_of_attention):.4g} evaluations of the canvas, and rows are {float(work_of_rows):.4g}"
    )
    kept = f"as attention would be {float(work_of_attention):.4g} evaluations of the canvas, too, or more"
    run, why = (attention, f"attention, {reason}") if saves else (rows, f"rows, {kept}")
    return replace(run, arrangement=(f"arrangement (auto): {why}", *run.arrangement))


@dataclass(frozen=True)
class Cost:
    """What a plan asks of the network: rows and calls, in all and by step."""

    per_step: tuple[Count, ...]

    @property
    def evaluations(self) -> int:
        return sum(count.evaluations for count in self.per_step)

    @property
    def canvases(self) -> Fraction:
        """The work of all rows in evaluations of a whole canvas."""
        return sum((count.canvases for count in self.per_step), Fraction(0))

    @property
    def forwards(self) -> int:
        return sum(count.forwards for count in self.per_step)

    @property
    def shared_rows(self) -> int:
        """Rows that were spared, because an equal one is evaluated."""
        return sum(count.shared for count in self.per_step)

    @property
    def control_rows(self) -> int:
        """Rows that ControlNets answer."""
        return sum(count.control_rows for count in self.per_step)

    @property
    def most_rows(self) -> int:
        """Rows of a whole canvas that are as much work as the largest forward."""
        full = [count for count in self.per_step if count.forwards]
        return max((math.ceil(count.canvases / count.forwards) for count in full), default=0)

    def runs(self) -> list[tuple[int, int, Count]]:
        """Stretches of equal steps as (first step, last step, count of each); steps count from 1."""
        grouped = groupby(enumerate(self.per_step, start=1), key=lambda pair: pair[1])
        stretches = [(list(pairs), count) for count, pairs in grouped]
        return [(pairs[0][0], pairs[-1][0], count) for pairs, count in stretches]


def cost(
    run: SamplingRun[Any], max_forward_rows: int | None = None, most: float = math.inf, prompts: Unencoded | None = None
) -> Cost:
    """Counted, not calculated: the run's own loop is driven without a network and without noise.

    It ends with the step in which the evaluations become more than `most`. Without `prompts`, all are of one length.
    """
    run = run.noiseless()
    context = counting_context(run.prompts, prompts or {}, max_forward_rows)
    per_step: list[Count] = []
    evaluations = 0
    for _, count in iterate(run, run.initial_state(), context):
        per_step.append(count)
        evaluations += count.evaluations
        if evaluations > most:
            break
    return Cost(tuple(per_step))


def warnings(job: ResolvedJob, run: SamplingRun[Any], trained_pixels: int) -> list[str]:
    """What a person should know before spending a GPU on this; `trained_pixels` is the model's canvas edge."""
    found: list[str] = []
    if job.denoise < 1 and job.init_image is None:
        found.append("denoise is below 1 and there is no init image: the picture will be flat")
    if job.denoise == 1 and job.init_image is not None and not job.protect:
        found.append("init_image: with denoise 1 almost nothing of it is seen; 0.3 to 0.8 keeps more")
    found += [*run.warnings(), *sign_warnings(job)]
    for name, pixels in (("width", job.width), ("height", job.height)):
        if not trained_pixels / 2 <= pixels <= trained_pixels * 2:
            found.append(f"{name} {pixels} is far from the {trained_pixels} pixels that the model was trained on")
    return found
