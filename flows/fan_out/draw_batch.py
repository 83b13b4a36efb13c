"""A list of jobs, or all job files that a pattern finds, drawn in shards and merged into a sheet."""

from __future__ import annotations

import math
from typing import Any

from prefect_regional_diffusion.flows.fan_out.render_many import Places, ShardingOptions, draw
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.tasks.inputs.job_files import read_jobs
from prefect_regional_diffusion.tasks.machine.settings import Keep
from prefect_regional_diffusion.tasks.runtime.preparations import prepared_once


async def draw_batch(
    jobs: tuple[NamedJob, ...] = (),
    files: str = "",
    parallel_shards: int | None = None,
    jobs_per_shard: int | None = None,
    store: str | None = None,
    out: str | None = None,
    name: str = "batch",
    keep: Keep | None = None,
    crash_timeout_seconds: float = 1800.0,
) -> dict[str, Any]:
    """The body of the flow `batch`, which says what the arguments are and what is returned.

    Raises BadInput, ModelError, StoreError or IncompleteRenderError.
    """
    if bool(jobs) == bool(files):
        raise BadInput("files", files, "a pattern, or jobs in its place, and not both")
    named = list(jobs) or read_jobs(files)
    taken = set[str]()
    for i, one in enumerate(named):
        if one.name in taken:
            raise BadInput(f"jobs.{i}.name", one.name, "a name that no other job has")
        taken.add(one.name)
    columns = math.ceil(math.sqrt(sum(one.job.pictures for one in named)))
    spread = ShardingOptions(parallel_shards, jobs_per_shard, crash_timeout_seconds)
    with prepared_once():
        return await draw(named, name, columns, Places(store, out, keep), spread)
