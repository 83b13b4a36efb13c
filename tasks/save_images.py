"""Finished pictures in the store, by the job that they show: found there by the same job, merged by any machine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prefect_regional_diffusion.tasks.inputs.file_names import portable_job
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.publish import versions
from prefect_regional_diffusion.tasks.runtime.job_inputs import FORMAT
from prefect_regional_diffusion.tasks.runtime.png_pictures import png_files
from prefect_regional_diffusion.tasks.runtime.rendered_images import NamedFile, RenderRecord, digest
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress
from prefect_regional_diffusion.tasks.storage import keys
from prefect_regional_diffusion.tasks.storage.parallel_io import map_concurrently

logger = plain_logger(__name__)


@task("pictures {first}-{last}")
async def keep_pictures(finished: Sequence[RunProgress], first: int, last: int, ready: asyncio.Future[None]) -> None:
    """Decode finished runs one after the other, hand on, and write the pictures to the store.

    `first` and `last` count the runs of the shard, for people.
    """
    files = [(member, await asyncio.to_thread(png_files, member.run, member.latents)) for member in finished]
    ready.set_result(None)
    await map_concurrently(lambda item: save_pictures(*item), files)


def save_pictures(member: RunProgress, files: Sequence[bytes]) -> None:
    """Write the PNG files of a finished run, whose last state is durable, to its store, and a record of them."""
    run = member.run
    pictures = {keys.picture(digest(data)): data for data in files}
    for key, data in pictures.items():
        run.store.write(key, data)
    record = RenderRecord(
        format=FORMAT,
        job=portable_job(run.job),
        files={field: NamedFile.model_validate(file) for field, file in run.files.items()},
        job_hash=run.job_hash,
        model_fingerprint=run.model_keys[run.job.model].digest,
        latents=run.state_key(run.sampling_run.steps),
        run=run.key,
        pictures=tuple(pictures),
        devices=member.devices,
        numerics=run.picture_numerics,
        versions=versions(),
    )
    # Last, so that what the record names is there.
    run.store.write_json(keys.drawn(run.job_hash), record.model_dump(mode="json", exclude_unset=True))
