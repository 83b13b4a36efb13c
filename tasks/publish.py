"""Task: publishes a finished run for people and programs: pictures, summary, record."""

from __future__ import annotations

import asyncio
import io
import platform
from collections.abc import Iterable
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict

from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.tasks.inputs.file_names import file_stem
from prefect_regional_diffusion.tasks.inputs.path_policy import is_url
from prefect_regional_diffusion.tasks.machine.devices import Devices, sentence
from prefect_regional_diffusion.tasks.machine.task import in_flow_run, task
from prefect_regional_diffusion.tasks.machine.versions import version
from prefect_regional_diffusion.tasks.storage.keys import output
from prefect_regional_diffusion.tasks.storage.store import Store
from prefect_regional_diffusion.tasks.ui.artifacts import best_effort
from prefect_regional_diffusion.tasks.ui.markdown import cell, code
from prefect_regional_diffusion.tasks.ui.prefect_artifacts import create_image, create_markdown
from prefect_regional_diffusion.tasks.ui.preview import as_data_uri

_PACKAGES = ("prefect-regional-diffusion", "torch", "diffusers", "transformers", "prefect", "pydantic", "safetensors")


class Record(BaseModel):
    """What was drawn, from what, and at what cost. Counts are of this run: restored steps cost nothing.
    `canvas_evaluations` are the `evaluations` where a row that shows a part of the canvas counts as its share of it.

    `job` names its files as `portable_job` does, and `files` says what was in them. `numerics` are what the last bits
    of latents and pictures depend on beside that: device, types of numbers, and settings of the machine.
    """

    model_config = ConfigDict(frozen=True)
    job: RenderJob
    files: dict[str, dict[str, Any]]
    job_hash: str
    model_fingerprint: str
    latents: str
    store: str
    images: list[str]
    steps_computed: int
    steps_restored: int
    evaluations: int
    canvas_evaluations: float
    forwards: int
    seconds: dict[str, float]
    devices: Devices
    numerics: dict[str, str]
    versions: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def as_file(self) -> dict[str, Any]:
        """The record as the file beside the pictures: it names them alone, and no folder of this machine."""
        values = self.as_json() | {"images": [image.rpartition("/")[2] for image in self.images]}
        if not is_url(self.store):
            del values["store"]
        return values


def versions() -> dict[str, str]:
    """Versions of everything that the picture depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


@task("publish")
async def publish(record: Record, pictures: Iterable[bytes], out: str, name: str) -> None:
    """Write the JSON record beside the pictures (PNG files) and create the flow run's artifacts."""
    file = output(f"{file_stem(record.job_hash, name)}.json")
    record_write = asyncio.to_thread(Store(out, "out").write_json, file, record.as_file())
    if not in_flow_run():
        await record_write
        return
    summary, title = _summary(record), f"Render {record.job_hash[:8]}"
    image_artifacts = [create_image(_data_uri(data), key="picture", description=summary) for data in pictures]
    summary_artifact = create_markdown(summary, key="summary", description=title)
    await asyncio.gather(record_write, *map(best_effort, [summary_artifact, *image_artifacts]))


def _data_uri(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as picture:
        return as_data_uri(picture)


def _summary(record: Record) -> str:
    job = resolve(record.job)
    regions = "\n".join(
        f"| {cell(region.name)} | {cell(region.settings.prompt)} | {region.settings.sampler} |"
        for region in job.regions
    )
    total = sum(record.seconds.values())
    smaller = record.canvas_evaluations < record.evaluations
    windows = f", the work of {record.canvas_evaluations:.4g} of the canvas," if smaller else ""
    pictures = ", ".join(code(image) for image in record.images)
    return f"""\
**{job.width} x {job.height}** pixels, {job.steps} steps, seed {job.seed}, {total:.1f} s:
{record.steps_computed} steps computed ({record.evaluations} evaluations{windows} in {record.forwards} forwards), \
{record.steps_restored} restored. Drawn by: {cell(sentence(record.devices))}.

| | prompt | sampler |
| --- | --- | --- |
| base | {cell(job.base.prompt)} | {job.base.sampler} |
{regions}

Job `{record.job_hash[:16]}`, model `{record.model_fingerprint[:16]}`, pictures: {pictures}
"""
