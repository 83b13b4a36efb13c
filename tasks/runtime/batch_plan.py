"""What it costs to draw several jobs in this process: what `grid` and `batch` do, counted without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.engine.cache_keys import named
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob, distinct
from prefect_regional_diffusion.sampling_core.job.sharding import shards
from prefect_regional_diffusion.sampling_core.planning.shared_cost import CostTogether, Story, cost_together
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.prepare import Prepared


class Together(NamedTuple):
    """How many of the jobs differ, in how many shards they are drawn, and what that costs in an empty store."""

    distinct: int
    shards: int
    cost: CostTogether


def plan_together(
    jobs: Sequence[NamedJob], prepared: Mapping[str, Prepared], jobs_per_shard: int | None = None
) -> Together:
    """Plan jobs that are drawn in one process; `prepared` has each distinct one by its name."""
    different = list(dict.fromkeys(distinct(jobs).values()))
    parts = shards(different, 1, jobs_per_shard)
    stories = {one.name: _story(prepared[one.name]) for one in different}
    groups: list[list[Story]] = []
    for part in parts:
        # Those with the same models step together, as in the flow `shard`.
        for _, group in groupby(sorted(part, key=_models), key=_models):
            groups.append([stories[one.name] for one in group])
    return Together(len(different), len(parts), cost_together(groups, settings().max_rows))


def _models(one: NamedJob) -> tuple[str, ...]:
    return one.job.models


def _story(prepared: Prepared) -> Story:
    # The latent of a start image is not known yet: jobs that start from others share nothing.
    start = None if prepared.job.start_image is None else prepared.mask_hash
    context = [prepared.model_keys[prepared.job.model].digest, start]
    return Story(prepared.run.noiseless(), named(prepared.run.segments(), context, prepared.model_keys))
