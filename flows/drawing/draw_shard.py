"""Several jobs drawn in one process, with one loaded model and in the same forwards; their pictures go to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

from prefect_regional_diffusion.flows.common.pending_writes import PendingWrites
from prefect_regional_diffusion.flows.common.render_batch import sample_batch
from prefect_regional_diffusion.flows.common.spent_time import Clock
from prefect_regional_diffusion.flows.common.time_limit import TimeLimit, time_limit_of_this_run
from prefect_regional_diffusion.sampling_core.engine.batching import Count
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.text.plain_text import redacted
from prefect_regional_diffusion.tasks.check_jobs import prepare_all
from prefect_regional_diffusion.tasks.inputs.path_policy import store_place
from prefect_regional_diffusion.tasks.machine.metrics import measured_run, tell
from prefect_regional_diffusion.tasks.machine.settings import Keep, settings
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.rendered_images import is_rendered
from prefect_regional_diffusion.tasks.runtime.retention import RunRecord, finish, run_record_of
from prefect_regional_diffusion.tasks.save_images import keep_pictures
from prefect_regional_diffusion.tasks.storage.parallel_io import map_concurrently
from prefect_regional_diffusion.tasks.storage.store import Store
from prefect_regional_diffusion.tasks.ui.picture_events import send_picture_event

_PICTURES = 8
"""Decoded in one task: more tasks at once are more than a server on SQLite can record."""


async def draw_shard(
    jobs: list[NamedJob], checkpoint_steps: int | None = None, store: str | None = None, keep: Keep | None = None
) -> dict[str, Any]:
    """The body of the flow `shard`, which says what the arguments are and what is returned.

    Raises BadInput, ModelError, StoreError or TimeLimitError.
    """
    with measured_run(sum(job.job.pictures for job in jobs)):
        return await _draw_missing(jobs, checkpoint_steps, store, keep)


async def _draw_missing(
    jobs: list[NamedJob], checkpoint_steps: int | None, store: str | None, keep: Keep | None
) -> dict[str, Any]:
    total, store_url, clock, limit = Count(), store_place(store), Clock(), time_limit_of_this_run()
    await asyncio.to_thread(Store(store_url).check, patient=True)
    async with PendingWrites() as updates, PendingWrites() as writes:
        runs = await writes.first_result(partial(prepare_all, jobs, store_url))
        clock.lap("build masks")
        rendered = dict(zip(runs, await map_concurrently(is_rendered, runs.values()), strict=True))
        missing = {name: run for name, run in runs.items() if not rendered[name]}
        tell("pictures", sum(run.job.pictures for name, run in runs.items() if rendered[name]), "found")
        unfinished = await _unfinished_records([run for name, run in runs.items() if rendered[name]])
        # Models that differ do not fit on a card at once: those with the same ones are drawn together.
        for _, group in groupby(sorted(missing.items(), key=_models_of), key=_models_of):
            count, records = await _draw(dict(group), checkpoint_steps, writes, updates, clock, limit)
            total, unfinished = total.plus(count), unfinished | records
        # Only now: until all are drawn, one may go on from a state of another.
        await finish(unfinished, keep or settings().keep, "branch_points")
    return {
        "drawn": len(missing),
        "found": len(runs) - len(missing),
        "evaluations": total.evaluations,
        "canvas_evaluations": float(total.canvases),
        "forwards": total.forwards,
        "seconds": clock.laps,
    }


def _models_of(item: tuple[str, RenderContext]) -> tuple[str, ...]:
    return item[1].models


async def _unfinished_records(runs: Sequence[RenderContext]) -> dict[RenderContext, RunRecord]:
    """Those runs whose pictures are there, but whose process was killed before it could say that they are finished."""
    records = zip(runs, await map_concurrently(run_record_of, runs), strict=True)
    return {run: record for run, record in records if record is not None and record.finished is None}


async def _draw(
    runs: dict[str, RenderContext],
    checkpoint_steps: int | None,
    writes: PendingWrites,
    updates: PendingWrites,
    clock: Clock,
    limit: TimeLimit,
) -> tuple[Count, dict[RenderContext, RunRecord]]:
    """Pictures of runs with the same models into the store; what that cost, and what the store knows of the runs.

    No picture waits for `updates` of the UI.
    """
    batch = await sample_batch(runs, checkpoint_steps, writes, clock, limit)
    updates.start(batch.artifacts.end(with_preview=True))
    # A picture's record names its last state.
    await writes.drain_to(0)
    for first in range(0, len(runs), _PICTURES):
        members = batch.members[first : first + _PICTURES]
        await writes.first_result(partial(keep_pictures, members, first + 1, first + len(members)))
        await writes.drain_to(settings().max_pending_writes)
    await writes.drain_to(0)
    clock.lap("write")
    tell("pictures", sum(run.job.pictures for run in runs.values()), "finished")
    for name, run in runs.items():
        send_picture_event("finished", run.job_hash, name, {"store": redacted(run.store.url)})
    return batch.cost, dict(zip(runs.values(), batch.run_records.result(), strict=True))
