"""Finished pictures in the store, by the job that they show: what shards leave, and what is merged on any machine."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sampling_core.job import RenderJob
from tasks.at_once import at_once
from tasks.decoding import encoded
from tasks.devices import Devices
from tasks.file_names import told_job
from tasks.logs import plain_logger
from tasks.preparing import FORMAT
from tasks.publishing import versions
from tasks.run import Run
from tasks.sampling import Progress
from tasks.store import Store
from tasks.task import task

logger = plain_logger(__name__)


class Drawn(BaseModel):
    """A finished job.

    `latents` is the key of its last state, `run` that of what the store knows of its run; `pictures` are keys that
    hold their files' SHA-256. What has another `format` than this code's was drawn by other arithmetic.
    """

    model_config = ConfigDict(frozen=True)
    format: int
    job: RenderJob
    files: dict[str, dict[str, Any]]
    job_hash: str
    model_fingerprint: str
    latents: str
    run: str
    pictures: tuple[str, ...]
    devices: Devices
    versions: dict[str, str]


@task("pictures {first}-{last}")
async def keep_pictures(finished: Sequence[Progress], first: int, last: int, made: asyncio.Future[None]) -> None:
    """Decode finished runs one after the other, hand on, and write the pictures to the store.

    `first` and `last` count the runs of the shard, for people.
    """
    files = [(member, await asyncio.to_thread(encoded, member.run, member.latents)) for member in finished]
    made.set_result(None)
    await at_once(lambda one: _keep(*one), files)


def _keep(member: Progress, files: Sequence[bytes]) -> None:
    run = member.run
    pictures = {f"pictures/{_digest(data)}.png": data for data in files}
    for key, data in pictures.items():
        run.store.write(key, data)
    drawn = Drawn(
        format=FORMAT,
        job=told_job(run.job),
        files=run.files,
        job_hash=run.job_hash,
        model_fingerprint=run.fingerprints[run.job.model],
        latents=run.state_key(run.composition.steps),
        run=run.key,
        pictures=tuple(pictures),
        devices=member.devices,
        versions=versions(),
    )
    # Last, so that what the record names is there.
    run.store.write_json(_key(run.job_hash), drawn.model_dump(mode="json"))


def is_drawn(run: Run) -> bool:
    """Are the run's pictures in the store whole, drawn with the numerics of this machine?"""
    if run.job.start_image is not None and run.store.read_tensors(run.start_key) is None:
        return False
    found = pictures_of(run.store, run.job_hash)
    return found is not None and found[0].latents == run.state_key(run.composition.steps)


def pictures_of(store: Store, job_hash: str) -> tuple[Drawn, list[bytes]] | None:
    """A job's record and its PNG files; None if it is not drawn, or something of it is damaged."""
    drawn = record_of(store, job_hash)
    if drawn is None:
        return None
    files = [store.read(key) for key in drawn.pictures]
    whole = [data for key, data in zip(drawn.pictures, files, strict=True) if data and _digest(data) in key]
    if len(whole) < len(files):
        logger.warning("a picture of job %s is damaged; it counts as absent", job_hash)
        return None
    return drawn, whole


def record_of(store: Store, job_hash: str) -> Drawn | None:
    """What the store says of a finished job; None if nothing, or if other arithmetic than today's has drawn it."""
    try:
        drawn = Drawn.model_validate(store.read_json(_key(job_hash)) or {})
    except ValidationError:
        return None
    return drawn if drawn.format == FORMAT else None


async def all_drawn(store_url: str, job_hashes: Iterable[str]) -> bool:
    """Are the pictures of all these jobs in the store whole, drawn on whatever device?"""
    store = Store(store_url)
    return all(await at_once(lambda job_hash: pictures_of(store, job_hash) is not None, job_hashes))


def _key(job_hash: str) -> str:
    return f"pictures/{job_hash}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
