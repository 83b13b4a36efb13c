"""Task: the pictures of many jobs put together: single files, a sheet, and a table of drawn and missing jobs."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image
from pydantic import BaseModel, ConfigDict

from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.tasks.inputs.file_names import file_stem
from prefect_regional_diffusion.tasks.machine.task import in_flow_run, task
from prefect_regional_diffusion.tasks.runtime.rendered_images import most_bytes, pictures_of
from prefect_regional_diffusion.tasks.storage.keys import OutputKey, output
from prefect_regional_diffusion.tasks.storage.parallel_io import map_concurrently
from prefect_regional_diffusion.tasks.storage.png_files import unpacked
from prefect_regional_diffusion.tasks.storage.store import Store
from prefect_regional_diffusion.tasks.ui.artifacts import best_effort
from prefect_regional_diffusion.tasks.ui.contact_sheet import sheet
from prefect_regional_diffusion.tasks.ui.markdown import cell, code
from prefect_regional_diffusion.tasks.ui.prefect_artifacts import create_image, create_markdown
from prefect_regional_diffusion.tasks.ui.preview import as_data_uri


class MergeResult(BaseModel):
    """What was merged: the sheet, the files of each job by its name, and the names of jobs that are not drawn.

    `sheet.json` says the same with names in the place of paths: all of it lies in one folder.
    """

    model_config = ConfigDict(frozen=True)
    sheet: str
    images: dict[str, list[str]]
    missing: list[str]


@task("merge pictures")
async def merge(jobs: list[NamedJob], hashes: dict[str, str], columns: int, store_url: str, folder: str) -> MergeResult:
    """Write single pictures with their records, the sheet and `sheet.json` into a folder, and create the artifacts.

    `hashes` are the jobs' hashes by name; equal jobs share their files. Jobs that the store does not have whole
    are grey on the sheet.
    """
    # The folder is made below that of all pictures, so that no link is followed that lies in its place.
    place, _, below = folder.rpartition("/")
    store, out, first = Store(store_url), _Out(Store(place or ".", "out"), below), dict[str, str]()
    for named_job in jobs:
        first.setdefault(hashes[named_job.name], named_job.name)
    job_of = {named_job.name: named_job.job for named_job in jobs}
    job_files = await map_concurrently(
        lambda item: _write_pictures(store, item[0], out, item[1], job_of[item[1]]), first.items()
    )
    by_hash = dict(zip(first, job_files, strict=True))
    files = {named_job.name: by_hash[hashes[named_job.name]] for named_job in jobs}
    present_files = {name: job_files for name, job_files in files.items() if job_files is not None}
    sheet_image = await asyncio.to_thread(_write_sheet, jobs, present_files, columns, out)
    missing = [name for name in files if name not in present_files]
    file_table = MergeResult(sheet="sheet.png", images=present_files, missing=missing)
    await asyncio.to_thread(out.store.write_json, out.key("sheet.json"), file_table.model_dump(mode="json"))
    paths = {name: [f"{folder}/{file}" for file in job_files] for name, job_files in present_files.items()}
    result = MergeResult(sheet=f"{folder}/{file_table.sheet}", images=paths, missing=missing)
    if not in_flow_run():
        return result
    description = f"{len(present_files)} of {len(files)} drawn"
    await best_effort(create_image(as_data_uri(sheet_image), key="sheet", description=description))
    table = _table(jobs, result)
    await best_effort(create_markdown(table, key="cells", description=description))
    return result


class _Out(NamedTuple):
    """A folder for pictures in the one for all pictures."""

    store: Store
    folder: str

    def key(self, file: str) -> OutputKey:
        return output(file, self.folder)


def _write_pictures(store: Store, job_hash: str, out: _Out, name: str, job: RenderJob) -> list[str] | None:
    """Write a job's pictures and record as files; their names, or None if it is not drawn."""
    stored_pictures = pictures_of(store, job_hash, job)
    if stored_pictures is None:
        return None
    record, pictures = stored_pictures
    stem, files = file_stem(job_hash, name), list[str]()
    for i, data in enumerate(pictures):
        file = f"{stem}.png" if len(pictures) == 1 else f"{stem}-{i + 1}.png"
        out.store.write(out.key(file), data)
        files.append(file)
    out.store.write_json(out.key(f"{stem}.json"), record.model_dump(mode="json") | {"images": files})
    return files


def _write_sheet(jobs: Sequence[NamedJob], files: Mapping[str, Sequence[str]], columns: int, out: _Out) -> Image.Image:
    """Write the sheet of all. A batch may have several pictures for a job; each gets a place."""
    places = [
        (file, named_job.job)
        for named_job in jobs
        for file in files.get(named_job.name, [None] * named_job.job.pictures)
    ]
    size = (max(named_job.job.width for named_job in jobs), max(named_job.job.height for named_job in jobs))
    pictures = (None if file is None else _picture(out, file, job) for file, job in places)
    sheet_image, buffer = sheet(pictures, (columns, -(-len(places) // columns)), size), io.BytesIO()
    sheet_image.save(buffer, format="PNG")
    out.store.write(out.key("sheet.png"), buffer.getvalue())
    return sheet_image


def _picture(out: _Out, name: str, job: RenderJob) -> Image.Image | None:
    """A PNG file of a job; None if it is gone meanwhile, or cannot be unpacked."""
    data = out.store.read(out.key(name), most_bytes(job))
    return None if data is None else unpacked(data, (job.width, job.height))


def _table(jobs: Sequence[NamedJob], result: MergeResult) -> str:
    rows = "\n".join(
        f"| {cell(named_job.name)} | {cell(named_job.job.prompt)} | {named_job.job.seed} "
        f"| {'missing' if named_job.name in result.missing else 'drawn'} |"
        for named_job in jobs
    )
    return f"Sheet: {code(result.sheet)}\n\n| | prompt | seed | |\n| --- | --- | --- | --- |\n{rows}\n"
