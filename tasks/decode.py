"""Task: the pictures of a finished run, decoded or found in the store, as PNG files."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect_regional_diffusion.tasks.inputs.file_names import file_stem
from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.png_pictures import png_files
from prefect_regional_diffusion.tasks.runtime.rendered_images import same_pictures
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress
from prefect_regional_diffusion.tasks.save_images import save_pictures
from prefect_regional_diffusion.tasks.storage.keys import output
from prefect_regional_diffusion.tasks.storage.store import Store


@task("decode")
async def decode(
    finished: RunProgress, out: str, name: str, state: asyncio.Future[Any], ready: asyncio.Future[dict[str, bytes]]
) -> None:
    """Hand on a run's PNG files by path, one per picture, and write them into the folder or fsspec URL `out`.

    A file's name is for people and ends in the job's hash. The files are kept in the store, too, once the last `state`
    is durable: there the same job finds them, and needs no model.
    """
    run = finished.run
    stored_pictures = await asyncio.to_thread(same_pictures, finished)
    pictures = stored_pictures or await asyncio.to_thread(png_files, run, finished.latents)
    folder, stem = Store(out, "out"), file_stem(run.job_hash, name)
    files = [f"{stem}.png" if len(pictures) == 1 else f"{stem}-{i + 1}.png" for i in range(len(pictures))]
    ready.set_result({f"{out}/{file}": data for file, data in zip(files, pictures, strict=True)})
    for file, data in zip(files, pictures, strict=True):
        await asyncio.to_thread(folder.write, output(file), data)
    if stored_pictures is None:
        # A picture's record names the last state.
        await asyncio.shield(state)
        await asyncio.to_thread(save_pictures, finished, pictures)
