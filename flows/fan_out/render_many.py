"""Many jobs drawn: checked first, cut into shards, drawn here or on other machines, and merged.

What needs Prefect is imported where it is called: without a server nothing here does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_regional_diffusion.flows.common.errors import IncompleteRenderError
from prefect_regional_diffusion.flows.drawing.draw_shard import draw_shard
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob, distinct
from prefect_regional_diffusion.sampling_core.job.sharding import shards
from prefect_regional_diffusion.sampling_core.text.plain_text import plain, plain_path
from prefect_regional_diffusion.tasks.check_jobs import check_all, filled_in
from prefect_regional_diffusion.tasks.inputs.file_names import file_stem
from prefect_regional_diffusion.tasks.inputs.limits import check_count
from prefect_regional_diffusion.tasks.inputs.path_policy import out_place, store_place
from prefect_regional_diffusion.tasks.inputs.size_limits import check_shard
from prefect_regional_diffusion.tasks.machine.settings import Keep, settings
from prefect_regional_diffusion.tasks.machine.step_listener import began
from prefect_regional_diffusion.tasks.machine.task import in_flow_run
from prefect_regional_diffusion.tasks.merge import merge
from prefect_regional_diffusion.tasks.runtime.rendered_images import all_rendered
from prefect_regional_diffusion.tasks.runtime.retention import forget_branch_points
from prefect_regional_diffusion.tasks.storage.store import Store

if TYPE_CHECKING:
    from prefect_regional_diffusion.flows.fan_out.shard_runs import ShardRequest

_MOST_NAMES = 20
"""In the line that says what is missing."""


class Places(NamedTuple):
    """Where things are kept: URL of the store, folder of the pictures; None: as this machine is set up."""

    store: str | None
    out: str | None
    keep: Keep | None


class ShardingOptions(NamedTuple):
    """How jobs are spread over machines.

    No parallel_shards: all are drawn in this process; but in a run of a deployment on one other, because the machine
    that runs `grid` or `batch` only starts shards, and loads no model itself.
    """

    parallel_shards: int | None
    jobs_per_shard: int | None
    crash_timeout_seconds: float
    poll: float = 5.0


async def draw(
    jobs: Sequence[NamedJob], name: str, columns: int, places: Places, sharding: ShardingOptions
) -> dict[str, Any]:
    """Draw jobs and merge their pictures in rows of `columns`. Equal jobs are drawn once.

    Raises BadInput before anything is drawn for jobs that cannot be, StoreError for a folder that cannot be written,
    and IncompleteRenderError, once everything that can be drawn is, if some are missing.
    """
    check_count("jobs", len(jobs))
    store, out = store_place(places.store), out_place(places.out)
    parallel_shards = sharding.parallel_shards or (1 if _is_deployment_run() else None)
    if parallel_shards is not None:
        from prefect_regional_diffusion.flows.fan_out.shard_runs import check_server

        check_server(parallel_shards)
    await asyncio.to_thread(Store(out, "out").check, patient=True)
    jobs = [filled_in(job) for job in jobs]
    first_of = distinct(jobs)
    unique_jobs = list(dict.fromkeys(first_of.values()))
    parts = shards(unique_jobs, parallel_shards or 1, sharding.jobs_per_shard)
    for part in parts:
        check_shard(part)
    hash_of = check_all(unique_jobs, drawn_here=parallel_shards is None)
    hashes = {job_name: hash_of[first.name] for job_name, first in first_of.items()}
    unfinished: list[str] = []
    shard_results: list[dict[str, Any]] = []
    if parallel_shards is None:
        draw_here = _shard_of_this_run() if in_flow_run() else draw_shard
        for part in parts:
            shard_results.append(await draw_here(list(part), store=places.store, keep=places.keep))
            # The time before the first shard is in its seconds; the next one begins now.
            began.set(None)
    else:
        from prefect_regional_diffusion.flows.fan_out.shard_runs import run_shards

        requests = [_part(part, hash_of, places, store) for part in parts]
        unfinished = await run_shards(requests, sharding.poll, sharding.crash_timeout_seconds)
    folder = f"{out}/{file_stem(content_hash([columns, list(hashes.values())]), name)}"
    merge_result = await merge(list(jobs), hashes, columns, store, folder)
    result = merge_result.model_dump(mode="json") | {"shards": len(parts), "counted": shard_results}
    if merge_result.missing:
        reason = f"not found whole in {plain_path(store)}"
        if unfinished:
            reason = f"{_name_list(unfinished)} did not complete"
        raise IncompleteRenderError(
            f"not drawn: {_name_list(merge_result.missing)} ({reason}); start the run again", result
        )
    await forget_branch_points(Store(store), hash_of.values(), places.keep or settings().keep)
    return result


def _shard_of_this_run() -> Callable[..., Coroutine[Any, Any, dict[str, Any]]]:
    """The flow `shard`, whose runs the server shows below this one."""
    from prefect_regional_diffusion.flows.shard import shard

    return shard


def _name_list(names: Sequence[str]) -> str:
    """The names in one line; of many, the first ones and how many more there are."""
    listing = ", ".join(plain(name, 80) for name in names[:_MOST_NAMES])
    return listing if len(names) <= _MOST_NAMES else f"{listing} and {len(names) - _MOST_NAMES} more"


def _is_deployment_run() -> bool:
    """Whether this is a run that a worker has started, and not somebody's own process."""
    if not in_flow_run():
        return False
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None


def _part(jobs: Sequence[NamedJob], hashes: Mapping[str, str], places: Places, store: str) -> ShardRequest:
    """The request for a shard's run; `hashes` are the jobs' by name, `store` is where their pictures are looked for."""
    from prefect_regional_diffusion.flows.fan_out.shard_runs import ShardRequest

    parameters: dict[str, Any] = {
        "jobs": [job.model_dump(mode="json", exclude_unset=True) for job in jobs],
        "store": places.store,
        "keep": places.keep,
    }
    job_hashes = [hashes[job.name] for job in jobs]
    key = content_hash([parameters, job_hashes])
    return ShardRequest(parameters, key, partial(all_rendered, store, job_hashes))
