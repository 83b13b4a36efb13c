"""Flow `grid`: one job in rows and columns of variants, drawn in shards and merged into a sheet."""

# No `from __future__ import annotations`: see render.py.
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from prefect_regional_diffusion.flows.common.results import NO_RESULTS
from prefect_regional_diffusion.flows.common.run_names import named_after
from prefect_regional_diffusion.flows.fan_out.draw_grid import draw_grid
from prefect_regional_diffusion.flows.render import Name
from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob
from prefect_regional_diffusion.sampling_core.job.sharding import MOST_PER_SHARD
from prefect_regional_diffusion.tasks.machine.settings import Keep

ParallelShards = Annotated[int | None, Field(ge=1, le=64)]
JobsPerShard = Annotated[int | None, Field(ge=1, le=MOST_PER_SHARD)]
Seconds = Annotated[float, Field(ge=1)]


@flow(name="grid", flow_run_name=named_after("grid"), persist_result=False, result_storage=NO_RESULTS)
async def grid(
    job: GridJob,
    parallel_shards: ParallelShards = None,
    cells_per_shard: JobsPerShard = None,
    store: str | None = None,
    out: str | None = None,
    name: Name = "grid",
    keep: Keep | None = None,
    crash_timeout_seconds: Seconds = 1800.0,
) -> dict[str, Any]:
    """Draw rows and columns of variants of one job: single pictures and a sheet of all.

    Args:
        job: What to draw.
        parallel_shards: How many shards are drawn at once, as runs of the deployment `shard/shard`. Empty: 1 in a run
            of a deployment; elsewhere this process draws.
        cells_per_shard: Most cells that one run draws. Empty: 32.
        store: Where latents and pictures are kept: a folder or an fsspec URL. Empty: where the worker keeps them.
        out: Folder for the pictures and the sheet. Empty: where the worker puts them.
        name: Start of the folder's name.
        keep: Which states stay in the store. Empty: as the worker is set up.
        crash_timeout_seconds: Seconds for which a crashed shard may still be started again by others.

    Returns:
        The files of the sheet and the pictures.
    """
    return await draw_grid(job, parallel_shards, cells_per_shard, store, out, name, keep, crash_timeout_seconds)
