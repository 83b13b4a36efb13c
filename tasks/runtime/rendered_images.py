"""Finished pictures in the store, by job: their records, and whether all that these name is undamaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.planning.job_size import finished_bytes, most_pictures
from prefect_regional_diffusion.tasks.inputs.file_names import portable_job
from prefect_regional_diffusion.tasks.machine.devices import Devices
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.job_inputs import FORMAT
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress
from prefect_regional_diffusion.tasks.storage import keys
from prefect_regional_diffusion.tasks.storage.parallel_io import map_concurrently
from prefect_regional_diffusion.tasks.storage.png_files import png_size, unpacked
from prefect_regional_diffusion.tasks.storage.records import Digest, Record, read_record
from prefect_regional_diffusion.tasks.storage.store import Store, most_record_bytes

logger = plain_logger(__name__)


class NamedFile(Record):
    """A job's name of a file, and the SHA-256 of its content."""

    name: str
    sha256: Digest


class RenderRecord(Record):
    """A finished job.

    `latents` is the key of its last state, `run` that of the record of its run; `pictures` are keys with their files'
    SHA-256, and `numerics` is what these depend on beside latents and job. A record of another `format` than this
    code's was drawn by other arithmetic.
    """

    format: int
    job: RenderJob
    files: dict[str, NamedFile]
    job_hash: Digest
    model_fingerprint: Digest
    latents: Annotated[str, AfterValidator(keys.state_of)]
    run: Annotated[str, AfterValidator(keys.run_of)]
    pictures: tuple[Annotated[str, AfterValidator(keys.PictureKey)], ...]
    devices: Devices
    numerics: Annotated[str, Field(max_length=500)]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _pictures_fit_job(self) -> Self:
        if len(set(self.pictures)) != len(self.pictures) or len(self.pictures) > most_pictures(self.job):
            raise ValueError("more pictures than the job has")
        return self


def most_bytes(job: RenderJob) -> int:
    """Bytes of a job's largest PNG file: pixels that cannot be compressed, and the job in a text chunk."""
    return 4 * (job.width + 1) * job.height + most_record_bytes()


def is_rendered(run: RenderContext) -> bool:
    """Whether the store has all of the run's pictures undamaged, drawn with the numerics of this machine."""
    if run.job.init_image is not None and run.store.read_tensors(run.start_key, run.start_specs) is None:
        return False
    record = _whole_record(run.store, run.job_hash, run.job)
    if record is None or record.numerics != run.picture_numerics:
        return False
    return record.latents == run.state_key(run.sampling_run.steps)


def pictures_of(store: Store, job_hash: str, job: RenderJob | None = None) -> tuple[RenderRecord, list[bytes]] | None:
    """A job's record and its PNG files; None if it is not drawn, or any of them is damaged.

    With `job`, pictures of another size count as damaged as well.
    """
    record = _record_for(store, job_hash, job)
    if record is None:
        return None
    pictures = list[bytes]()
    for data in _files(store, record):
        if data is None:
            return None
        pictures.append(data)
    return record, pictures


def same_pictures(finished: RunProgress) -> list[bytes] | None:
    """The PNG files of a finished run, if the store has them as they would be written now: same state, same job."""
    run = finished.run
    stored_pictures = pictures_of(run.store, run.job_hash, run.job)
    if stored_pictures is None:
        return None
    record, pictures = stored_pictures
    files = {field: file.model_dump() for field, file in record.files.items()}
    stored_facts = (len(pictures), record.latents, record.devices, record.numerics, record.job, files)
    current_facts = (len(finished.latents), finished.state_key, finished.devices, run.picture_numerics)
    if stored_facts != (*current_facts, portable_job(run.job), run.files):
        return None
    size = (run.job.width, run.job.height)
    # They are shown and opened without another check.
    return pictures if all(unpacked(data, size) is not None for data in pictures) else None


def _whole_record(store: Store, job_hash: str, job: RenderJob | None = None) -> RenderRecord | None:
    """The record alone, if all its files are undamaged: one of them at a time is in memory."""
    record = _record_for(store, job_hash, job)
    return record if record is not None and all(data is not None for data in _files(store, record)) else None


def _record_for(store: Store, job_hash: str, job: RenderJob | None) -> RenderRecord | None:
    record = record_of(store, job_hash)
    if record is None or job is None:
        return record
    size = (record.job.width, record.job.height)
    if size != (job.width, job.height) or len(record.pictures) > most_pictures(job):
        contents = f"{len(record.pictures)} pictures of {size[0]} x {size[1]} pixels"
        store.tell_unfit(keys.drawn(job_hash), ValueError(contents))
        return None
    return record


def _files(store: Store, record: RenderRecord) -> Iterator[bytes | None]:
    """The PNG files that a record names; None for one that is damaged."""
    for key in map(keys.PictureKey, record.pictures):
        data = store.read(key, most_bytes(record.job))
        size = (record.job.width, record.job.height)
        if data is None or keys.picture(digest(data)) != key or png_size(data) != size:
            logger.warning("a picture of job %s is damaged; it counts as absent", record.job_hash)
            data = None
        yield data


def record_of(store: Store, job_hash: str) -> RenderRecord | None:
    """The store's record of a finished job; None without one, or if other arithmetic than today's has drawn it."""
    key = keys.drawn(job_hash)
    record = read_record(store, key, RenderRecord)
    if record is None or record.format != FORMAT:
        return None
    limits = settings()
    if record.job_hash != job_hash:
        store.tell_unfit(key, ValueError("it tells of another job"))
        return None
    canvas = record.job.width * record.job.height
    has_too_many = record.job.pictures > limits.max_pictures or finished_bytes(record.job) > limits.max_tensor_bytes
    if has_too_many or canvas > limits.max_canvas_pixels:
        store.tell_unfit(key, ValueError("it tells of a job that is not allowed here"))
        return None
    return record


async def all_rendered(store_url: str, job_hashes: Iterable[str]) -> bool:
    """Whether the store has all pictures of these jobs undamaged, drawn on any device."""
    store = Store(store_url)
    return all(await map_concurrently(lambda job_hash: _whole_record(store, job_hash) is not None, job_hashes))


def digest(data: bytes) -> str:
    """SHA-256 of a file, as hex."""
    return hashlib.sha256(data).hexdigest()
