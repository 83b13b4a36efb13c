"""The cost of drawing several jobs in this process, as `grid` and `batch` do, counted without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.engine.cache_keys import segment_keys
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob, distinct
from prefect_regional_diffusion.sampling_core.job.sharding import shards
from prefect_regional_diffusion.sampling_core.planning.shared_cost import BatchCost, PlannedRun, batch_cost
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.prepare import Prepared


class BatchPlan(NamedTuple):
    """How many of the jobs differ, in how many shards they are drawn, and what that costs in an empty store."""

    distinct: int
    shards: int
    cost: BatchCost


def plan_batch(
    jobs: Sequence[NamedJob], prepared: Mapping[str, Prepared], jobs_per_shard: int | None = None
) -> BatchPlan:
    """Plan jobs that are drawn in one process; `prepared` has each distinct one by its name."""
    distinct_jobs = list(dict.fromkeys(distinct(jobs).values()))
    parts = shards(distinct_jobs, 1, jobs_per_shard)
    groups: list[list[PlannedRun]] = []
    for part in parts:
        # Those with the same models step together, as in the flow `shard`.
        for _, group in groupby(sorted((prepared[job.name] for job in part), key=_models), key=_models):
            groups.append([_plan_run(job) for job in group])
    return BatchPlan(len(distinct_jobs), len(parts), batch_cost(groups, settings().max_forward_rows))


def _models(prepared: Prepared) -> tuple[str, ...]:
    return prepared.resolved.models


def _plan_run(prepared: Prepared) -> PlannedRun:
    inputs = prepared.inputs
    # The latent of an init image is not known yet: jobs with different init images share nothing.
    start_hash = None if prepared.resolved.init_image is None else inputs.mask_hash
    context = [inputs.model_keys[prepared.resolved.base.model].digest, start_hash]
    segments = segment_keys(prepared.run.segments(), context, inputs.model_keys, inputs.embedding_digests)
    return PlannedRun(prepared.run.noiseless(), segments, prepared.prompts)
