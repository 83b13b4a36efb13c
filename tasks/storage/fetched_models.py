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


def is_fetched(path: str) -> bool:
    """Whether this process has fetched what lies at a real path."""
    real = Path(path)
    return any(real.is_relative_to(Path(place).parent) for place in _fetched.values())


def _fetch(field: str, url: str) -> str:
    system, path = fsspec.url_to_fs(url, use_listings_cache=False, **storage_options(url))
    objects = _listed(field, url, system, path)
    cache = Path(settings().model_cache).expanduser()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    version = content_hash([url, [[one.name, one.size, one.etag] for one in objects]])
    entry = cache.resolve() / f"{PurePosixPath(path).name[:80]}-{version[:32]}"
    with _locked(entry):
        digests = _whole(entry, url)
        missing = [one for one in objects if one.name not in digests]
        if missing:
            make_room(field, url, cache, entry, sum(one.size for one in objects))
            logger.info("fetching %s: %d bytes", url, sum(one.size for one in missing))
            for one in missing:
                digests[one.name] = _downloaded(field, url, system, entry, one)
                _write_record(entry, digests)
            if _listed(field, url, system, path) != objects:
                raise ModelError(field, url, _CHANGED)
            logger.info("fetched %s", url)
        # When it was used last; and so long as this process lives it is not removed.
        os.utime(entry)
        _hold(entry)
    place = entry / _CONTENT
    return str(place / objects[0].name if _is_file(path) else place / PurePosixPath(path).name)


def _is_file(path: str) -> bool:
    return path.lower().endswith(WEIGHTS)


def _listed(field: str, url: str, system: Any, path: str) -> list[RemoteObject]:
    """The objects of a model, a file's own first. Names begin with the last part of the URL."""
    above = path.rpartition("/")[0]
    found: dict[str, dict[str, Any]] = {}
    if _is_file(path):
        found[path] = retry_transient(url, partial(system.info, path), "read", field)
        path = path.rpartition(".")[0]
    below: dict[str, dict[str, Any]] = retry_transient(url, partial(system.find, path, detail=True), "list", field)
    wanted = _OTHERS if found else (*WEIGHTS, *_OTHERS)
    found |= {key: about for key, about in sorted(below.items()) if key.lower().endswith(wanted)}
    objects = [
        RemoteObject(key.removeprefix(f"{above}/"), key, int(about["size"]), str(about.get("ETag", "")))
        for key, about in found.items()
        if about["type"] == "file"
    ]
    if not objects:
        raise ModelError(field, url, "does not exist, or has no weights, configurations and tokenizers below it")
    if len(objects) > _MOST_OBJECTS:
        raise ModelError(field, url, f"has {len(objects)} objects, more than {_MOST_OBJECTS}")
    odd = next((one for one in objects if _NAME.fullmatch(one.name) is None), None)
    if odd is not None:
        raise ModelError(field, url, f"has an object that no file is called like ({odd.name!r:.80})")
    return objects


def _whole(entry: Path, url: str) -> dict[str, str]:
    """SHA-256 by name of the files that are there, with the content that they were fetched with."""
    try:
        record: dict[str, str] = json.loads((entry / _RECORD).read_bytes())
        files = find_files(url, entry / _CONTENT, os.path.realpath)
    except (FileNotFoundError, ValueError):
        return {}
    # Whoever opens the model asks for the same digests, which are remembered.
    return {name: digest for name, digest in record.items() if name in files and files.digest(name).hex() == digest}


def _downloaded(field: str, url: str, system: Any, entry: Path, one: RemoteObject) -> str:
    """Fetch an object block by block, after what is there of it, and name it when it is whole. Returns its SHA-256."""
    file = entry / _CONTENT / one.name
    part = entry / _PARTS / hashlib.sha256(one.name.encode()).hexdigest()
    for folder in (file.parent, part.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with part.open("a+b") as stream:
        while (there := stream.seek(0, os.SEEK_END)) < one.size:
            end = min(there + _BLOCK_BYTES, one.size)
            read = partial(system.cat_file, one.path, start=there, end=end)
            block: bytes = retry_transient(url, read, "read", field)
            if len(block) != end - there:
                raise ModelError(field, url, _CHANGED)
            stream.write(block)
            stream.flush()
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
def _locked(entry: Path) -> Generator[None]:
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
