"""The only storage I/O: named tensors and JSON at any fsspec URL.

Objects are named by content (the key says what determined them), so writing one twice is harmless, by
however many writers. Writes are atomic; what is not exactly an object that was written counts as absent, and says so.
Requests to a store that does not answer are retried for as long as the settings allow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from prefect_regional_diffusion.sampling_core.errors import BadInput, RegionalError, StoreError
from prefect_regional_diffusion.sampling_core.tensors.specs import Specs
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.secrets import reason_of
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.storage import keys, tensor_files
from prefect_regional_diffusion.tasks.storage.credentials import storage_options
from prefect_regional_diffusion.tasks.storage.failures import Operation, is_permanent, problem_of, remember
from prefect_regional_diffusion.tasks.storage.keys import Folder, Key, OutputKey, RecordKey, TensorKey
from prefect_regional_diffusion.tasks.storage.local_files import LocalFiles
from prefect_regional_diffusion.tasks.storage.remote_files import RemoteFiles
from prefect_regional_diffusion.tasks.storage.retry import retry_transient
from prefect_regional_diffusion.tasks.storage.unfit import UnfitError

logger = plain_logger(__name__)

T = TypeVar("T")

_PROBE = b"ok"


class Stored(NamedTuple):
    """An object below a store: its key (None: not the store's own), its bytes, when it was written (Unix seconds)."""

    key: Key | None
    size: int
    written: float


class Store:
    """Keys are below `url`. Every method raises StoreError if the store fails for good."""

    def __init__(self, url: str, field: str = "store") -> None:
        """`field` is what errors call it. Raises BadInput if the URL names no file system that is installed."""
        self.url, self._field = url, field
        try:
            # Others write to the store as well, so what a listing said must not be remembered.
            self._fs, self._root = fsspec.url_to_fs(url, use_listings_cache=False, **storage_options(url))
        except RegionalError:
            raise
        except Exception as error:  # each of the many file systems has its own way to refuse
            allowed = f"a folder or an fsspec URL such as s3://bucket/path ({reason_of(error)})"
            raise BadInput(self._field, url, allowed) from error
        self._files: LocalFiles | RemoteFiles
        if isinstance(self._fs, LocalFileSystem):
            self._files = LocalFiles(self._root)
        else:
            self._files = RemoteFiles(self._fs, self._root, lists_prefixes=url.startswith("s3:"))

    def check(self, *, patient: bool = False) -> None:
        """Raise StoreError unless an object can be written, read back and removed, now, and is absent after that.

        If `patient`, only for what waiting will not mend: a store that is away may be back when it is needed. What
        checks that were killed have left is removed.
        """
        probe = keys.probe()
        try:
            self._put(probe, _PROBE)
            self._files.read(probe, len(_PROBE))
            if isinstance(self._files, RemoteFiles):
                self._files.remove_old_probes(probe)
            self._files.remove(probe)
            # Without the right to list, S3 answers 403 and not 404 for a missing object, which is read all the time.
            self._files.read(probe, len(_PROBE))
            remember(self.url, "read", "write", "list", "remove")
        except Exception as error:
            if patient and not is_permanent(error, self.url, "write"):
                logger.warning("%s %s; it may be written later", self.url, problem_of(error, "write"))
                return
            raise StoreError(self._field, self.url, problem_of(error, "write")) from error

    def exists(self) -> bool:
        """Whether there is a folder at the URL or, in an object store, a bucket or anything below a prefix."""
        return bool(self._retried(lambda: self._fs.exists(self._root) and not self._fs.isfile(self._root), "list"))

    def write(self, key: Key, data: bytes) -> None:
        """Write an object atomically; it is durable when this returns."""
        self._retried(lambda: self._put(key, data), "write")

    def read(self, key: Key, most: int) -> bytes | None:
        """An object's bytes; None if it is not there, or cannot be one because it has more than `most`."""

        def read_or_none() -> bytes | None:
            try:
                return self._files.read(_name(key), most)
            except UnfitError as error:
                self.tell_unfit(key, error)
                return None

        return self._retried(read_or_none, "read")

    def write_tensors(self, key: TensorKey, tensors: Mapping[str, Tensor]) -> int:
        """Write tensors atomically; returns their size in bytes once they are durable."""
        data = tensor_files.encoded(tensors)
        self.write(key, data)
        return len(data)

    def read_tensors(self, key: TensorKey, specs: Specs) -> dict[str, Tensor] | None:
        """The tensors under `key`; None if there are none, or others than the specs name, or they are damaged."""
        data = self.read(key, tensor_files.most_bytes(specs))
        try:
            return None if data is None else tensor_files.decoded(data, specs)
        except UnfitError as error:
            self.tell_unfit(key, error)
            return None

    def write_json(self, key: RecordKey | OutputKey, value: Any) -> None:
        """Write a JSON value atomically; a record on one line, what people look at on many."""
        indent, separators = (1, None) if isinstance(key, OutputKey) else (None, (",", ":"))
        self.write(key, (json.dumps(value, indent=indent, separators=separators) + "\n").encode())

    def read_json(self, key: RecordKey) -> Any:
        """The JSON value under `key`, or None if there is none or it is damaged."""
        data = self.read(key, most_record_bytes())
        try:
            return None if data is None else json.loads(data)
        except (ValueError, RecursionError, MemoryError):
            self.tell_unfit(key, UnfitError("it is damaged"))
            return None

    def tell_unfit(self, key: Key, reason: Exception) -> None:
        """Warn that what lies under a key counts as absent."""
        logger.warning("%s in %s counts as absent: %s", key, self.url, reason)

    def names(self, folder: Folder) -> list[str]:
        """Names of the tensors directly below a folder, without the extension, sorted."""
        entries = self._retried(lambda: self._files.names(_name(folder)), "list")
        extension = TensorKey.extension
        return sorted(name.removesuffix(extension) for name in entries if name.endswith(extension))

    def objects(self, folder: Folder) -> list[Stored]:
        """All objects below a folder, however deep."""
        files = self._retried(lambda: list(self._files.files(_name(folder))), "list")
        return [Stored(keys.parsed(name), size, written) for name, size, written in files]

    def remove(self, targets: Iterable[Key]) -> None:
        """Remove objects; what is not there any more is no error."""
        for key in targets:
            self._retried(partial(self._files.remove, _name(key)), "remove")

    def _retried(self, work: Callable[[], T], operation: Operation) -> T:
        return retry_transient(self.url, work, operation, self._field)

    def _put(self, key: Key, data: bytes) -> None:
        self._files.write(_name(key), data)


def most_record_bytes() -> int:
    """Of the largest record that is ever written: a job has the most part in it, and JSON may spell it longer."""
    return 4 * settings().max_job_bytes + 2**20


def _name(key: Key) -> str:
    """The path of a key below a store. Types say so already; a string of somebody else's must not get here."""
    if not isinstance(key, Key):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{type(key).__name__} is no key")
    return key.object_name
