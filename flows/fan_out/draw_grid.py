"""One job in rows and columns of variants, drawn in shards and merged into a sheet."""

from __future__ import annotations

from typing import Any

from prefect_regional_diffusion.flows.fan_out.render_many import Places, ShardingOptions, draw
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob, NamedJob, cells
from prefect_regional_diffusion.tasks.check_jobs import checked
from prefect_regional_diffusion.tasks.inputs.limits import check_cells
from prefect_regional_diffusion.tasks.machine.settings import Keep
from prefect_regional_diffusion.tasks.runtime.preparations import prepared_once
from prefect_regional_diffusion.tasks.runtime.prepare import Prepared


async def draw_grid(
    job: GridJob,
    parallel_shards: int | None = None,
    cells_per_shard: int | None = None,
    store: str | None = None,
    out: str | None = None,
    name: str = "grid",
    keep: Keep | None = None,
    crash_timeout_seconds: float = 1800.0,
) -> dict[str, Any]:
    """The body of the flow `grid`, which says what the arguments are and what is returned.

    Raises BadInput, ModelError, StoreError or IncompleteRenderError.
    """
    check_cells("job", job.rows, job.columns)
    sharding = ShardingOptions(parallel_shards, cells_per_shard, crash_timeout_seconds)
    with prepared_once():
        check(job)
        return await draw(cells(job), name, job.columns, Places(store, out, keep), sharding)


def check(grid_job: GridJob) -> Prepared:
    """Check the job itself, so that errors name its own fields and not those of a cell. Raises BadInput."""
    prepared = checked(NamedJob(name="job", job=grid_job.job))
    steps = prepared.run.steps
    if grid_job.fork_step >= steps:
        allowed = f"1 to {steps - 1} (scheduler {prepared.job.scheduler} makes {steps} steps)"
        raise BadInput("fork_at_step", grid_job.fork_step, allowed)
    return prepared
