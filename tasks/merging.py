"""Task: the pictures of many jobs put together: single files, a sheet, and a table of what is there and what is not."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence

from PIL import Image
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact
from pydantic import BaseModel, ConfigDict

from sampling_core.grid_job import NamedJob
from tasks.at_once import at_once
from tasks.file_names import file_stem
from tasks.images import as_data_uri
from tasks.markdown import cell, code
from tasks.pictures import pictures_of
from tasks.sheet import sheet
from tasks.showing import show_or_warn
from tasks.store import Store
from tasks.task import in_flow_run, task


class Merged(BaseModel):
    """What was merged: the sheet, the files of each job by its name, and the names of jobs that are not drawn.

    `sheet.json` says the same with names in the place of paths: all of it lies in one folder.
    """

    model_config = ConfigDict(frozen=True)
    sheet: str
    images: dict[str, list[str]]
    missing: list[str]


@task("merge pictures")
async def merge(jobs: list[NamedJob], hashes: dict[str, str], columns: int, store_url: str, folder: str) -> Merged:
    """Write single pictures with their records, the sheet and `sheet.json` into a folder, and create the artifacts.

    `hashes` are the jobs' hashes by name; equal jobs share their files. Jobs that the store does not have whole
    are grey on the sheet.
    """
    store, out, first = Store(store_url), Store(folder, "out"), dict[str, str]()
    for named in jobs:
        first.setdefault(hashes[named.name], named.name)
    written = await at_once(lambda item: _single(store, item[0], out, item[1]), first.items())
    by_hash = dict(zip(first, written, strict=True))
    files = {named.name: by_hash[hashes[named.name]] for named in jobs}
    found = {name: written for name, written in files.items() if written is not None}
    made = await asyncio.to_thread(_sheet, jobs, found, columns, out)
    missing = [name for name in files if name not in found]
    told = Merged(sheet="sheet.png", images=found, missing=missing)
    await asyncio.to_thread(out.write_json, "sheet", told.model_dump(mode="json"))
    paths = {name: [f"{folder}/{file}" for file in written] for name, written in found.items()}
    merged = Merged(sheet=f"{folder}/{told.sheet}", images=paths, missing=missing)
    if not in_flow_run():
        return merged
    description = f"{len(found)} of {len(files)} drawn"
    await show_or_warn(acreate_image_artifact(as_data_uri(made), key="sheet", description=description))
    table = _table(jobs, merged)
    await show_or_warn(acreate_markdown_artifact(table, key="cells", description=description))
    return merged


def _single(store: Store, job_hash: str, out: Store, name: str) -> list[str] | None:
    """Write a job's pictures and record as files; their names, or None if it is not drawn."""
    found = pictures_of(store, job_hash)
    if found is None:
        return None
    drawn, pictures = found
    stem, files = file_stem(job_hash, name), list[str]()
    for i, data in enumerate(pictures):
        file = f"{stem}.png" if len(pictures) == 1 else f"{stem}-{i + 1}.png"
        out.write(file, data)
        files.append(file)
    out.write_json(stem, drawn.model_dump(mode="json") | {"images": files})
    return files


def _sheet(jobs: Sequence[NamedJob], found: Mapping[str, Sequence[str]], columns: int, out: Store) -> Image.Image:
    """Write the sheet of all. A batch may have several pictures for a job; each gets a place."""
    places = [file for named in jobs for file in found.get(named.name, [None] * named.job.pictures)]
    size = (max(named.job.width for named in jobs), max(named.job.height for named in jobs))
    pictures = (None if file is None else _picture(out, file) for file in places)
    made, buffer = sheet(pictures, (columns, -(-len(places) // columns)), size), io.BytesIO()
    made.save(buffer, format="PNG")
    out.write("sheet.png", buffer.getvalue())
    return made


def _picture(out: Store, name: str) -> Image.Image | None:
    """A PNG file; None if it is gone meanwhile."""
    data = out.read(name)
    if data is None:
        return None
    with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
        return opened.convert("RGB")


def _table(jobs: Sequence[NamedJob], merged: Merged) -> str:
    rows = "\n".join(
        f"| {cell(named.name)} | {cell(named.job.prompt)} | {named.job.seed} "
        f"| {'missing' if named.name in merged.missing else 'drawn'} |"
        for named in jobs
    )
    return f"Sheet: {code(merged.sheet)}\n\n| | prompt | seed | |\n| --- | --- | --- | --- |\n{rows}\n"
