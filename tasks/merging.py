"""Task: the pictures of many jobs put together: single files, a sheet, and a table of what is there and what is not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from prefect import task
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact
from pydantic import BaseModel, ConfigDict

from sampling_core.grid_job import NamedJob
from tasks.decoding import file_stem, write_file
from tasks.images import as_data_uri
from tasks.pictures import pictures_of
from tasks.publishing import table_cell
from tasks.sheet import sheet
from tasks.store import Store


class Merged(BaseModel):
    """What was merged: the sheet, the files of each job by its name, and the names of jobs that are not drawn."""

    model_config = ConfigDict(frozen=True)
    sheet: str
    images: dict[str, list[str]]
    missing: list[str]


@task(task_run_name="merge pictures", persist_result=False)
async def merge(jobs: list[NamedJob], hashes: dict[str, str], columns: int, store_url: str, folder: str) -> Merged:
    """Write single pictures with their records, the sheet and `sheet.json` into a folder, and create the artifacts.

    `hashes` are the jobs' hashes by name; equal jobs share their files. Jobs that the store does not have whole
    are grey on the sheet.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    store, first = Store(store_url), dict[str, list[str] | None]()
    for named in jobs:
        if hashes[named.name] not in first:
            first[hashes[named.name]] = _single(store, hashes[named.name], Path(folder), named.name)
    files = {named.name: first[hashes[named.name]] for named in jobs}
    found = {name: paths for name, paths in files.items() if paths is not None}
    made = Path(folder) / "sheet.png"
    _save_sheet(jobs, found, columns, made)
    merged = Merged(sheet=str(made), images=found, missing=[name for name in files if name not in found])
    write_file(made.with_suffix(".json"), (merged.model_dump_json(indent=2) + "\n").encode())
    description = f"{len(found)} of {len(files)} drawn"
    with Image.open(made) as opened:
        await acreate_image_artifact(as_data_uri(opened), key="sheet", description=description)
    await acreate_markdown_artifact(_table(jobs, merged), key="cells", description=description)
    return merged


def _single(store: Store, job_hash: str, folder: Path, name: str) -> list[str] | None:
    """A job's pictures and record as files; None if it is not drawn."""
    found = pictures_of(store, job_hash)
    if found is None:
        return None
    drawn, pictures = found
    stem, paths = file_stem(job_hash, name), list[str]()
    for i, data in enumerate(pictures):
        paths.append(str(folder / (f"{stem}.png" if len(pictures) == 1 else f"{stem}-{i + 1}.png")))
        write_file(Path(paths[-1]), data)
    record = drawn.model_dump(mode="json") | {"images": paths}
    write_file(folder / f"{stem}.json", (json.dumps(record, indent=2) + "\n").encode())
    return paths


def _save_sheet(jobs: Sequence[NamedJob], found: Mapping[str, Sequence[str]], columns: int, path: Path) -> None:
    """A batch may have several pictures for a job; each gets a place."""
    places = [file for named in jobs for file in found.get(named.name, [None] * named.job.pictures)]
    size = (max(named.job.width for named in jobs), max(named.job.height for named in jobs))
    pictures = (None if file is None else Path(file).read_bytes() for file in places)
    made = sheet(pictures, (columns, -(-len(places) // columns)), size)
    part = path.with_suffix(".part")
    made.save(part, format="PNG")
    part.replace(path)


def _table(jobs: Sequence[NamedJob], merged: Merged) -> str:
    rows = "\n".join(
        f"| {table_cell(named.name)} | {table_cell(named.job.prompt)} | {named.job.seed} "
        f"| {'missing' if named.name in merged.missing else 'drawn'} |"
        for named in jobs
    )
    return f"Sheet: `{merged.sheet}`\n\n| | prompt | seed | |\n| --- | --- | --- | --- |\n{rows}\n"
