"""Finished pictures in the store, by the job that they show: records, and whether all that they name is whole."""

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
    """What a job calls a file, and the SHA-256 of what was in it."""

    name: str
    sha256: Digest


class RenderRecord(Record):
    """A finished job.

    `latents` is the key of its last state, `run` that of what the store knows of its run; `pictures` are keys that
    hold their files' SHA-256, and `numerics` is what these depend on beside latents and job. What has another `format`
    than this code's was drawn by other arithmetic.
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
    def _as_many_as_drawn(self) -> Self:
        if len(set(self.pictures)) != len(self.pictures) or len(self.pictures) > most_pictures(self.job):
            raise ValueError("more pictures than the job has")
        return self


def most_bytes(job: RenderJob) -> int:
    """Bytes of a job's largest PNG file: pixels that cannot be compressed, and the job in a text chunk."""
    return 4 * (job.width + 1) * job.height + most_record_bytes()


def is_rendered(run: RenderContext) -> bool:
    """Are the run's pictures in the store whole, drawn with the numerics of this machine?"""
    if run.job.init_image is not None and run.store.read_tensors(run.start_key, run.start_specs) is None:
        return False
    drawn = _whole(run.store, run.job_hash, run.job)
    if drawn is None or drawn.numerics != run.picture_numerics:
        return False
    return drawn.latents == run.state_key(run.sampling_run.steps)


def pictures_of(store: Store, job_hash: str, job: RenderJob | None = None) -> tuple[RenderRecord, list[bytes]] | None:
    """A job's record and its PNG files; None if it is not drawn, or something of it is damaged.

    Whoever knows the job gives it: pictures of another size are then damaged as well.
    """
    drawn = _record_for(store, job_hash, job)
    if drawn is None:
        return None
    pictures = list[bytes]()
    for data in _files(store, drawn):
        if data is None:
            return None
        pictures.append(data)
    return drawn, pictures


def same_pictures(finished: RunProgress) -> list[bytes] | None:
    """The PNG files of a finished run, if the store has those that would be made now: of this state, in these words."""
    run = finished.run
    found = pictures_of(run.store, run.job_hash, run.job)
    if found is None:
        return None
    drawn, pictures = found
    files = {field: file.model_dump() for field, file in drawn.files.items()}
    told = (len(pictures), drawn.latents, drawn.devices, drawn.numerics, drawn.job, files)
    made = (len(finished.latents), finished.state_key, finished.devices, run.picture_numerics)
    if told != (*made, portable_job(run.job), run.files):
        return None
    size = (run.job.width, run.job.height)
    # They are shown and opened without another look.
    return pictures if all(unpacked(data, size) is not None for data in pictures) else None


def _whole(store: Store, job_hash: str, job: RenderJob | None = None) -> RenderRecord | None:
    """The same without the files: one of them at a time is in memory."""
    drawn = _record_for(store, job_hash, job)
    return drawn if drawn is not None and all(data is not None for data in _files(store, drawn)) else None


def _record_for(store: Store, job_hash: str, job: RenderJob | None) -> RenderRecord | None:
    drawn = record_of(store, job_hash)
    if drawn is None or job is None:
        return drawn
    size = (drawn.job.width, drawn.job.height)
    if size != (job.width, job.height) or len(drawn.pictures) > most_pictures(job):
        found = f"{len(drawn.pictures)} pictures of {size[0]} x {size[1]} pixels"
        store.tell_unfit(keys.drawn(job_hash), ValueError(found))
        return None
    return drawn


def _files(store: Store, drawn: RenderRecord) -> Iterator[bytes | None]:
    """The PNG files that a record names; None for one that is damaged."""
    for key in map(keys.PictureKey, drawn.pictures):
        data = store.read(key, most_bytes(drawn.job))
        size = (drawn.job.width, drawn.job.height)
        if data is None or keys.picture(digest(data)) != key or png_size(data) != size:
            logger.warning("a picture of job %s is damaged; it counts as absent", drawn.job_hash)
            data = None
        yield data


def record_of(store: Store, job_hash: str) -> RenderRecord | None:
    """What the store says of a finished job; None if nothing, or if other arithmetic than today's has drawn it."""
    key = keys.drawn(job_hash)
    drawn = read_record(store, key, RenderRecord)
    if drawn is None or drawn.format != FORMAT:
        return None
    chosen = settings()
    if drawn.job_hash != job_hash:
        store.tell_unfit(key, ValueError("it tells of another job"))
        return None
    canvas = drawn.job.width * drawn.job.height
    many = drawn.job.pictures > chosen.max_pictures or finished_bytes(drawn.job) > chosen.max_tensor_bytes
    if many or canvas > chosen.max_canvas_pixels:
        store.tell_unfit(key, ValueError("it tells of a job that is not allowed here"))
        return None
    return drawn


async def all_rendered(store_url: str, job_hashes: Iterable[str]) -> bool:
    """Are the pictures of all these jobs in the store whole, drawn on whatever device?"""
    store = Store(store_url)
    return all(await map_concurrently(lambda job_hash: _whole(store, job_hash) is not None, job_hashes))


def digest(data: bytes) -> str:
    """SHA-256 of a file, as hex."""
    return hashlib.sha256(data).hexdigest()
