"""Objects of an object store or any other file system that fsspec knows, by their names below a root."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from prefect_regional_diffusion.tasks.storage.leftovers import old_leftovers
from prefect_regional_diffusion.tasks.storage.local_files import Listed
from prefect_regional_diffusion.tasks.storage.unfit import UnfitError


class RemoteFiles:
    """Raises whatever the file system raises, and UnfitError."""

    def __init__(self, system: Any, root: str, *, lists_prefixes: bool) -> None:
        """`lists_prefixes`: whether names that begin alike can be listed without all others, as S3 does it."""
        self._system, self._root, self._lists_prefixes = system, root, lists_prefixes

    def read(self, name: str, most: int) -> bytes | None:
        """An object's bytes; None if it is not there. Raises UnfitError if it is empty, or has over `most` bytes."""
        try:
            # One request: to ask for the size first would be another.
            data: bytes = self._system.cat_file(self._path(name), start=0, end=most + 1)
        except FileNotFoundError:
            return None
        except IsADirectoryError as error:
            raise UnfitError("it is no object") from error
        except OSError as error:
            if _has_no_such_range(error):
                raise UnfitError("it is empty") from error
            raise
        if len(data) > most:
            raise UnfitError(f"it has more than the {most} bytes that it could have")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write an object: such a store shows it only once all of it has arrived."""
        self._system.pipe_file(self._path(name), data)

    def remove(self, name: str) -> None:
        """Remove an object; what is not there is no error."""
        with suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def names(self, folder: str) -> list[str]:
        """Names of the objects directly below a prefix. Where prefixes are listed, so is all that is deeper."""
        try:
            if self._lists_prefixes and folder:
                # Of a prefix without objects, `ls` lists all of its neighbours, too.
                below = (path.rpartition(f"{folder}/")[2] for path in self._find(folder))
                return [name for name in below if "/" not in name]
            paths: list[str] = self._system.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return [path.rpartition("/")[2] for path in paths]

    def files(self, below: str) -> Iterator[Listed]:
        """All objects below a prefix, however deep."""
        entries = self._find(below)
        # File systems do not agree on whether a path begins with a slash.
        root = self._root.strip("/")
        for path, info in entries.items():
            name = path.removeprefix("/").removeprefix(root).removeprefix("/")
            yield Listed(name, int(info["size"] or 0), _mtime(info))

    def _find(self, below: str) -> dict[str, dict[str, Any]]:
        if self._lists_prefixes and below:
            # One request. Without `prefix`, there are two more where nothing is found.
            folder, _, name = self._path(below).rpartition("/")
            return self._system.find(folder, prefix=f"{name}/", detail=True)
        return self._system.find(self._path(below), withdirs=False, detail=True)

    def remove_old_probes(self, own_probe: str) -> None:
        """Remove other checks' probes that are old, by the store's clock: it has just written `own_probe`."""
        # Who cannot list, or remove, goes without: what was left is in nobody's way.
        with suppress(Exception):
            entries: list[dict[str, Any]]
            if self._lists_prefixes:
                # Probes alone, in one request: a folder's listing has all pictures in it.
                entries = list(self._system.find(self._root, prefix="probe-", detail=True).values())
            else:
                entries = self._system.ls(self._root, detail=True)
            mtimes = {info["name"].rpartition("/")[2]: _mtime(info) for info in entries}
            for name in old_leftovers(mtimes.items(), mtimes[own_probe]):
                self._system.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _has_no_such_range(error: OSError) -> bool:
    """Whether S3 says that an object does not have the first of the bytes that were asked for."""
    match getattr(error.__cause__, "response", None):
        case {"Error": {"Code": "InvalidRange" | "416"}}:
            return True
        case _:
            return False


def _mtime(info: Mapping[str, Any]) -> float:
    """When an object was written; file systems name it differently, and some do not know."""
    for name in ("mtime", "LastModified", "created"):
        value = info.get(name)
        if value is not None:
            return value.timestamp() if hasattr(value, "timestamp") else float(value)
    return 0.0
