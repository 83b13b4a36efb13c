"""The only storage I/O: named tensors and JSON at any fsspec URL.

Objects are named by content (the key says what determined them), so writing one twice is harmless, by
however many writers. Writes are atomic; a damaged object counts as absent, and says so. A store that
does not answer is asked again until the patience that the settings allow is used up.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sampling_core.errors import RegionalError, StoreError
from tasks.credentials import storage_options
from tasks.leftovers import old_leftovers, tidy
from tasks.logs import plain_logger
from tasks.patience import Deed, fails_for_good, patiently, reason_of, remember

logger = plain_logger(__name__)

T = TypeVar("T")

_DIGEST = "sha256"


class Stored(NamedTuple):
    """An object of the store: its key with extension, its size in bytes, and when it was written (Unix seconds)."""

    key: str
    size: int
    written: float


class Store:
    """Keys are slash-separated paths below `url`. Every method raises StoreError if the store fails for good."""

    def __init__(self, url: str, field: str = "store") -> None:
        """`field` is what errors call it. Raises StoreError if the URL names no file system that is installed."""
        self.url, self._field = url, field
        try:
            # Others write to the store as well, so what a listing said must not be remembered.
            self._fs, self._root = fsspec.url_to_fs(url, use_listings_cache=False, **storage_options(url))
        except RegionalError:
            raise
        except Exception as error:  # each of the many file systems has its own way to refuse
            raise StoreError(
                self._field, url, f"a folder or an fsspec URL such as s3://bucket/path ({reason_of(error)})"
            ) from error

    def check(self, *, patient: bool = False) -> None:
        """Raise StoreError unless an object can be written, read back and removed, now, and is then known as absent.

        If `patient`, only for what waiting will not mend: a store that is away may be back when it is needed. What
        checks that were killed have left is removed.
        """
        probe = f"probe-{uuid.uuid4().hex}"
        try:
            self._put(probe, b"ok")
            self._fs.cat_file(self._path(probe))
            self._remove_old_probes(probe)
            self._fs.rm_file(self._path(probe))
            # S3 refuses to tell those who may not list what is not there. It is asked for all the time.
            with suppress(FileNotFoundError):
                self._fs.cat_file(self._path(probe))
            remember(self.url, "read", "write", "list", "remove")
        except Exception as error:
            if patient and not fails_for_good(error, self.url, "write"):
                logger.warning("%s cannot be written now (%s); it may be later", self.url, reason_of(error))
                return
            raise StoreError(self._field, self.url, f"a place that can be written ({reason_of(error)})") from error

    def exists(self) -> bool:
        """Whether there is a folder at the URL or, in an object store, a bucket or anything below a prefix."""
        return bool(self._patiently(lambda: self._fs.exists(self._root) and not self._fs.isfile(self._root), "list"))

    def write(self, name: str, data: bytes) -> None:
        """Write an object atomically; it is durable when this returns."""
        self._patiently(lambda: self._put(name, data), "write")

    def read(self, name: str) -> bytes | None:
        """An object's bytes, or None if it is not there."""

        def found() -> bytes | None:
            try:
                return self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None

        return self._patiently(found, "read")

    def write_tensors(self, key: str, tensors: Mapping[str, Tensor]) -> int:
        """Write `key`.safetensors atomically; returns its size in bytes once it is durable."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save(tensors, metadata={_DIGEST: _digest(tensors)})
        self.write(f"{key}.safetensors", data)
        return len(data)

    def read_tensors(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under `key`, or None if there are none or they are damaged."""
        data = self.read(f"{key}.safetensors")
        if data is None:
            return None
        try:
            tensors = load(data)
            # The header is plain JSON behind an 8-byte length; `load` does not hand out its metadata.
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        except (SafetensorError, ValueError):
            logger.warning("%s in %s is damaged; it counts as absent", key, self.url)
            return None
        if header.get("__metadata__", {}).get(_DIGEST) != _digest(tensors):
            logger.warning("%s in %s does not have the content it was written with; it counts as absent", key, self.url)
            return None
        return tensors

    def write_json(self, key: str, value: Any) -> None:
        """Write `key`.json atomically."""
        self.write(f"{key}.json", (json.dumps(value, indent=1) + "\n").encode())

    def read_json(self, key: str) -> Any:
        """The JSON value under `key`, or None if there is none or it is damaged."""
        data = self.read(f"{key}.json")
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            logger.warning("%s in %s is damaged; it counts as absent", key, self.url)
            return None

    def names(self, prefix: str) -> list[str]:
        """Names of the tensors directly below a key prefix, without the extension, sorted."""

        def listed() -> list[str]:
            try:
                return self._fs.ls(self._path(prefix), detail=False)
            except FileNotFoundError:
                return []

        return sorted(Path(path).stem for path in self._patiently(listed, "list") if path.endswith(".safetensors"))

    def objects(self, prefix: str) -> list[Stored]:
        """All objects below a key prefix, however deep."""
        found: dict[str, dict[str, Any]] = self._patiently(
            lambda: self._fs.find(self._path(prefix), withdirs=False, detail=True), "list"
        )
        # File systems do not agree on whether a path begins with a slash.
        root = self._root.strip("/")
        return [
            Stored(path.strip("/").removeprefix(root).strip("/"), int(about["size"]), _written(about))
            for path, about in found.items()
        ]

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects, by their keys with extension; what is not there any more is no error."""

        def removed(path: str) -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(path)

        for key in keys:
            self._patiently(partial(removed, self._path(key)), "remove")

    def _remove_old_probes(self, own: str) -> None:
        """Remove other checks' probes that are old, by the store's clock: it has just written `own`."""
        if isinstance(self._fs, LocalFileSystem):
            return  # `_put` tidies up
        # Who cannot list, or remove, goes without: what was left is in nobody's way.
        with suppress(Exception):
            found: list[dict[str, Any]]
            if self.url.startswith("s3:"):
                # Probes alone, in one request: a folder's listing has all pictures in it.
                found = list(self._fs.find(self._root, prefix="probe-", detail=True).values())
            else:
                found = self._fs.ls(self._root, detail=True)
            written = {about["name"].rpartition("/")[2]: _written(about) for about in found}
            for name in old_leftovers(written.items(), written[own]):
                self._fs.rm_file(self._path(name))

    def _patiently(self, work: Callable[[], T], deed: Deed) -> T:
        return patiently(self.url, work, deed, self._field)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if not isinstance(self._fs, LocalFileSystem):
            # An object store shows an object only once all of it has arrived.
            self._fs.pipe_file(path, data)
            return
        final = Path(path)
        made = list(takewhile(lambda folder: not folder.exists(), final.parents))
        final.parent.mkdir(parents=True, exist_ok=True)
        part = final.with_name(f".{final.name}.{uuid.uuid4().hex}.part")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(final)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        # A file is durable under its name when its folder is; so is a folder that was just made.
        for folder in (final.parent, *(folder.parent for folder in made)):
            _sync(folder)
        tidy(final)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable, where the file system can; some that are mounted over a network cannot."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _written(about: Mapping[str, Any]) -> float:
    """When an object was written; file systems name it differently, and some do not know."""
    for name in ("mtime", "LastModified", "created"):
        when = about.get(name)
        if when is not None:
            return when.timestamp() if hasattr(when, "timestamp") else float(when)
    return 0.0


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes: what the file's own structure checks do not cover."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()
