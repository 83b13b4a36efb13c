"""Flow `batch`: a list of jobs, or all job files that a pattern finds, drawn in shards and merged into a sheet."""

# No `from __future__ import annotations`: see render.py.
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from prefect_regional_diffusion.flows.common.results import NO_RESULTS
from prefect_regional_diffusion.flows.common.run_names import named_after
from prefect_regional_diffusion.flows.fan_out.draw_batch import draw_batch
from prefect_regional_diffusion.flows.grid import JobsPerShard, ParallelShards, Seconds
from prefect_regional_diffusion.flows.render import Name
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.tasks.machine.settings import Keep


@flow(name="batch", flow_run_name=named_after("batch"), persist_result=False, result_storage=NO_RESULTS)
async def batch(
    jobs: Annotated[tuple[NamedJob, ...], Field(max_length=1000)] = (),
    files: str = "",
    parallel_shards: ParallelShards = None,
    jobs_per_shard: JobsPerShard = None,
    store: str | None = None,
    out: str | None = None,
    name: Name = "batch",
    keep: Keep | None = None,
    crash_timeout_seconds: Seconds = 1800.0,
) -> dict[str, Any]:
    """Draw many jobs: single pictures and a sheet of all.

    Args:
        jobs: What to draw, each under a name of its own.
        files: A pattern such as `jobs/*.yaml`, below the folder that the worker runs in. In the place of `jobs`.
        parallel_shards: How many shards are drawn at once, as runs of the deployment `shard/shard`. Empty: 1 in a run
            of a deployment; elsewhere this process draws.
        jobs_per_shard: Most jobs that one run draws. Empty: 32.
        store: Where latents and pictures are kept: a folder or an fsspec URL. Empty: where the worker keeps them.
        out: Folder for the pictures and the sheet. Empty: where the worker puts them.
        name: Start of the folder's name.
        keep: Which states stay in the store. Empty: as the worker is set up.
        crash_timeout_seconds: Seconds for which a crashed shard may still be started again by others.

    Returns:
        The files of the sheet and the pictures.
    """
    return await draw_batch(jobs, files, parallel_shards, jobs_per_shard, store, out, name, keep, crash_timeout_seconds)
