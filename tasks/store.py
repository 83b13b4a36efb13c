"""The only storage I/O: named tensors and JSON at any fsspec URL.

Objects are named by content (the key says what determined them), so writing one twice is harmless.
Writes are atomic; a damaged object counts as absent, and says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sampling_core.errors import RegionalError, StoreError
from tasks.credentials import storage_options

logger = logging.getLogger(__name__)

_DIGEST = "sha256"


class Store:
    """Keys are slash-separated paths below `url`."""

    def __init__(self, url: str) -> None:
        """Raises StoreError if the URL names no file system that is installed."""
        self.url = url
        try:
            self._fs, self._root = fsspec.url_to_fs(url, **storage_options(url))
        except RegionalError:
            raise
        except Exception as error:  # each of the many file systems has its own way to refuse
            raise StoreError("store", url, f"a folder or an fsspec URL such as s3://bucket/path ({error})") from error

    def check(self) -> None:
        """Raise StoreError unless something can be written and read back."""
        probe = f"probe-{uuid.uuid4().hex}"
        try:
            self._write(probe, b"ok")
            self._fs.rm_file(self._path(probe))
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise StoreError("store", self.url, f"a place that can be written ({reason})") from error

    def write_tensors(self, key: str, tensors: Mapping[str, Tensor]) -> int:
        """Write `key`.safetensors atomically; returns its size in bytes."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save(tensors, metadata={_DIGEST: _digest(tensors)})
        self._write(f"{key}.safetensors", data)
        return len(data)

    def read_tensors(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under `key`, or None if there are none or they are damaged."""
        try:
            data: bytes = self._fs.cat_file(self._path(f"{key}.safetensors"))
        except FileNotFoundError:
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

    def names(self, prefix: str) -> list[str]:
        """Names of the tensors directly below a key prefix, without the extension, sorted."""
        try:
            found: list[str] = self._fs.ls(self._path(prefix), detail=False)
        except FileNotFoundError:
            return []
        return sorted(Path(path).stem for path in found if path.endswith(".safetensors"))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if not isinstance(self._fs, LocalFileSystem):
            # An object store shows an object only once all of it has arrived.
            self._fs.pipe_file(path, data)
            return
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        part = final.with_name(f".{final.name}.{uuid.uuid4().hex}.part")
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(final)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes: what the file's own structure checks do not cover."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()
