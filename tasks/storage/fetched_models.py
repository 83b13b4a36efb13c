"""Models of an object store: fetched once a machine into a folder of it, whole and checked, before they are opened.

What a URL stands for is asked once a process. Each version of it, known by the sizes and ETags of its objects, has a
folder; what is fetched there has a record with the SHA-256 of each file, and is compared with that before it is used.
Processes of a machine wait for the one that fetches; where one was killed, the next goes on after its last block.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec

from prefect_regional_diffusion.sampling_core.errors import ModelError, RegionalError, StoreError
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.models.files import find_files
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.secrets import reason_of
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.storage.credentials import storage_options
from prefect_regional_diffusion.tasks.storage.fetch_progress import FetchProgress
from prefect_regional_diffusion.tasks.storage.fetched_space import lock_file, make_room
from prefect_regional_diffusion.tasks.storage.retry import retry_transient

logger = plain_logger(__name__)

WEIGHTS = (".safetensors", ".sft")
_OTHERS = (".json", ".txt", ".model")
"""What is fetched of a folder: weights, configurations and tokenizers, and no code and no pickles."""
_NAME = re.compile(r"[A-Za-z0-9_=+ -][A-Za-z0-9._=+ -]*(/[A-Za-z0-9_=+ -][A-Za-z0-9._=+ -]*){0,8}")
_MOST_OBJECTS = 1000
_BLOCK_BYTES = 2**24
_CONTENT, _PARTS, _RECORD = "content", "parts", "record.json"
_CHANGED = "changed in its store while it was fetched: try again"

_one_at_a_time = threading.Lock()
_fetched: dict[str, str] = {}
"""Places by URL. What this process has asked for stays what it was, and stays on the disk until it ends."""


class RemoteObject(NamedTuple):
    """An object below a URL: its name there, its path in the store, its size in bytes, and the store's own mark."""

    name: str
    path: str
    size: int
    etag: str


def fetched(field: str, url: str) -> str:
    """The path of a model's file, or of its folder, that has the content of `url`. Raises ModelError.

    The folder beside a file, of its name without the suffix, is fetched with it: configurations and tokenizers.
    """
    with _one_at_a_time:
        if url not in _fetched:
            try:
                _fetched[url] = _fetch(field, url)
            except StoreError as error:
                raise ModelError(field, url, error.problem) from error
            except RegionalError:
                raise
            except OSError as error:
                raise ModelError(field, url, f"cannot be kept in REGIONAL_MODEL_CACHE: {error.strerror}") from error
            except Exception as error:  # file systems have their own ways to refuse a URL
                raise ModelError(field, url, f"cannot be fetched: {reason_of(error)}") from error
        return _fetched[url]


def forget_fetched() -> None:
    """Look at stores anew: a process that has ended a run does so for the next one. What is on the disk stays there."""
    with _one_at_a_time:
        _fetched.clear()


def is_fetched(path: str) -> bool:
    """Whether this process has fetched what lies at a real path."""
    real_path = Path(path)
    return any(real_path.is_relative_to(Path(place).parent) for place in _fetched.values())


def _fetch(field: str, url: str) -> str:
    system, path = fsspec.url_to_fs(url, use_listings_cache=False, **storage_options(url))
    objects = _list_objects(field, url, system, path)
    cache = Path(settings().model_cache).expanduser()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    version = content_hash(
        [url, [[remote_object.name, remote_object.size, remote_object.etag] for remote_object in objects]]
    )
    entry = cache.resolve() / f"{PurePosixPath(path).name[:80]}-{version[:32]}"
    with _lock_entry(entry):
        digests = _checked_digests(entry, url)
        missing = [remote_object for remote_object in objects if remote_object.name not in digests]
        if missing:
            make_room(field, url, cache, entry, sum(remote_object.size for remote_object in objects))
            missing_bytes = sum(remote_object.size for remote_object in missing)
            logger.info("fetching %s: %d bytes", url, missing_bytes)
            progress = FetchProgress(url, missing_bytes)
            for remote_object in missing:
                digests[remote_object.name] = _download(field, url, system, entry, remote_object, progress)
                _write_record(entry, digests)
            if _list_objects(field, url, system, path) != objects:
                raise ModelError(field, url, _CHANGED)
            logger.info("fetched %s", url)
        # When it was used last; and so long as this process lives it is not removed.
        os.utime(entry)
        _hold(entry)
    place = entry / _CONTENT
    return str(place / objects[0].name if _is_file(path) else place / PurePosixPath(path).name)


def _is_file(path: str) -> bool:
    return path.lower().endswith(WEIGHTS)


def _list_objects(field: str, url: str, system: Any, path: str) -> list[RemoteObject]:
    """The objects of a model, a file's own first. Names begin with the last part of the URL."""
    prefix = path.rpartition("/")[0]
    info_by_key: dict[str, dict[str, Any]] = {}
    if _is_file(path):
        info_by_key[path] = retry_transient(url, partial(system.info, path), "read", field)
        path = path.rpartition(".")[0]
    below: dict[str, dict[str, Any]] = retry_transient(url, partial(system.find, path, detail=True), "list", field)
    suffixes = _OTHERS if info_by_key else (*WEIGHTS, *_OTHERS)
    info_by_key |= {key: info for key, info in sorted(below.items()) if key.lower().endswith(suffixes)}
    objects = [
        RemoteObject(key.removeprefix(f"{prefix}/"), key, int(info["size"]), str(info.get("ETag", "")))
        for key, info in info_by_key.items()
        if info["type"] == "file"
    ]
    if not objects:
        raise ModelError(field, url, "does not exist, or has no weights, configurations and tokenizers below it")
    if len(objects) > _MOST_OBJECTS:
        raise ModelError(field, url, f"has {len(objects)} objects, more than {_MOST_OBJECTS}")
    bad_object = next((remote_object for remote_object in objects if _NAME.fullmatch(remote_object.name) is None), None)
    if bad_object is not None:
        raise ModelError(field, url, f"has an object that no file is called like ({bad_object.name!r:.80})")
    return objects


def _checked_digests(entry: Path, url: str) -> dict[str, str]:
    """SHA-256 by name of the files that are there, with the content that they were fetched with."""
    try:
        record: dict[str, str] = json.loads((entry / _RECORD).read_bytes())
        files = find_files(url, entry / _CONTENT, os.path.realpath)
    except (FileNotFoundError, ValueError):
        return {}
    # Whoever opens the model asks for the same digests, which are remembered.
    return {name: digest for name, digest in record.items() if name in files and files.digest(name).hex() == digest}


def _download(
    field: str, url: str, system: Any, entry: Path, remote_object: RemoteObject, progress: FetchProgress
) -> str:
    """Fetch an object block by block, after what is there of it, and name it when it is whole. Returns its SHA-256."""
    file = entry / _CONTENT / remote_object.name
    part = entry / _PARTS / hashlib.sha256(remote_object.name.encode()).hexdigest()
    for folder in (file.parent, part.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with part.open("a+b") as stream:
        progress.advance(stream.seek(0, os.SEEK_END))
        while (size := stream.seek(0, os.SEEK_END)) < remote_object.size:
            end = min(size + _BLOCK_BYTES, remote_object.size)
            read_block = partial(system.cat_file, remote_object.path, start=size, end=end)
            block: bytes = retry_transient(url, read_block, "read", field)
            if len(block) != end - size:
                raise ModelError(field, url, _CHANGED)
            stream.write(block)
            stream.flush()
            progress.advance(len(block))
        os.fsync(stream.fileno())
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    part.replace(file)
    return digest


def _write_record(entry: Path, digests: Mapping[str, str]) -> None:
    part = entry / f"{_RECORD}.part"
    part.write_text(json.dumps(digests, indent=1))
    part.replace(entry / _RECORD)


@contextmanager
def _lock_entry(entry: Path) -> Generator[None]:
    """Alone with an entry on this machine; another process that fetches it is waited for."""
    with lock_file(entry, "fetch").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that fetches %s", entry.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        entry.mkdir(mode=0o700, exist_ok=True)
        yield


def _hold(entry: Path) -> None:
    """Share a lock that nobody has who removes the entry, until this process ends."""
    descriptor = os.open(lock_file(entry, "use"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
