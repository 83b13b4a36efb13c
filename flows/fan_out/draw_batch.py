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
    named_jobs = list(jobs) or read_jobs(files)
    names = set[str]()
    for i, entry in enumerate(named_jobs):
        if entry.name in names:
            raise BadInput(f"jobs.{i}.name", entry.name, "a name that no other job has")
        names.add(entry.name)
    columns = math.ceil(math.sqrt(sum(entry.job.pictures for entry in named_jobs)))
    sharding = ShardingOptions(parallel_shards, jobs_per_shard, crash_timeout_seconds)
    with prepared_once():
        return await draw(named_jobs, name, columns, Places(store, out, keep), sharding)
