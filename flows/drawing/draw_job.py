"""One job drawn, from its masks to a PNG; started again after a crash, it goes on where it was."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from prefect_regional_diffusion.flows.common.pending_writes import PendingWrites
from prefect_regional_diffusion.flows.common.render_batch import sample_batch
from prefect_regional_diffusion.flows.common.spent_time import Clock
from prefect_regional_diffusion.flows.common.time_limit import time_limit_of_this_run
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.text.plain_text import plain, redacted
from prefect_regional_diffusion.tasks.build_masks import build_masks
from prefect_regional_diffusion.tasks.decode import decode
from prefect_regional_diffusion.tasks.inputs.file_names import portable_job
from prefect_regional_diffusion.tasks.inputs.path_policy import out_place, store_place
from prefect_regional_diffusion.tasks.machine.metrics import measured_run, tell
from prefect_regional_diffusion.tasks.machine.settings import Keep, settings
from prefect_regional_diffusion.tasks.publish import Record, publish, versions
from prefect_regional_diffusion.tasks.runtime.preparations import preparations, prepared_once
from prefect_regional_diffusion.tasks.runtime.retention import finish
from prefect_regional_diffusion.tasks.storage.parallel_io import map_concurrently
from prefect_regional_diffusion.tasks.storage.signed_urls import signed_urls
from prefect_regional_diffusion.tasks.storage.store import Store
from prefect_regional_diffusion.tasks.ui.picture_events import UNKNOWN, send_picture_event

_IN_EVENT = {
    *("images", "latents", "store", "model_fingerprint"),
    *("steps_computed", "steps_restored", "evaluations", "canvas_evaluations", "forwards", "seconds"),
}
"""What an event tells of a record."""


async def draw_job(
    job: RenderJob,
    checkpoint_steps: int | None = None,
    store: str | None = None,
    out: str | None = None,
    name: str = "render",
    keep: Keep | None = None,
) -> dict[str, Any]:
    """The body of the flow `render`, which says what the arguments are and what is returned.

    In a flow run, an event says how it ended. Raises BadInput, ModelError, StoreError or TimeLimitError.
    """
    try:
        with measured_run(job.pictures), prepared_once():
            record = await _draw(job, checkpoint_steps, store, out, name, keep)
            tell("pictures", len(record.images), "finished" if record.steps_computed else "found")
    except Exception as error:
        send_picture_event("failed", UNKNOWN, name, {"reason": plain(error)})
        raise
    numbers = record.model_dump(mode="json", include=_IN_EVENT)
    signed = await asyncio.to_thread(signed_urls, record.images)
    send_picture_event("finished", record.job_hash, name, numbers | {"urls": signed})
    return record.as_json()


async def _draw(
    job: RenderJob, checkpoint_steps: int | None, store: str | None, out: str | None, name: str, keep: Keep | None
) -> Record:
    clock, limit = Clock(), time_limit_of_this_run()
    clock.lap("start")
    store_url, out = store_place(store), out_place(out)
    # Before hours of work, not after them. The first question to an object store in a process takes a second: the job
    # is planned meanwhile, and nothing is written.
    checks = map_concurrently(lambda place: place.check(patient=True), [Store(store_url), Store(out, "out")])
    await asyncio.gather(checks, asyncio.to_thread(preparations().look_up, job))
    clock.lap("open store")
    async with PendingWrites() as updates:
        async with PendingWrites() as writes:
            run = await writes.first_result(partial(build_masks, job, store_url))
            clock.lap("build masks")
            batch = await sample_batch({name: run}, checkpoint_steps, writes, clock, limit)
            # The picture itself follows.
            updates.start(batch.artifacts.end(with_preview=False))
            (finished,) = batch.members
            pictures = await writes.first_result(partial(decode, finished, out, name, writes.all_pending()))
            clock.lap("decode")
        clock.lap("write")

        record = Record(
            job=portable_job(run.job),
            files=run.files,
            job_hash=run.job_hash,
            model_fingerprint=run.model_keys[run.job.model].digest,
            latents=finished.state_key,
            store=redacted(store_url),
            images=list(pictures),
            steps_computed=batch.computed_steps,
            steps_restored=batch.restored_steps,
            evaluations=batch.cost.evaluations,
            canvas_evaluations=float(batch.cost.canvases),
            forwards=batch.cost.forwards,
            seconds=clock.laps,
            devices=finished.devices,
            numerics={"latents": run.numerics, "pictures": run.picture_numerics},
            versions=versions(),
        )
        keeping = finish({run: batch.run_records.result()[0]}, keep or settings().keep)
        await asyncio.gather(publish(record, list(pictures.values()), out, name), keeping)
    return record
