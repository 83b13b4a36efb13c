"""Files below a folder that others may write to, too: no link is followed there, nothing but plain files is read.

Each folder on the way is opened in the one before it, so that nobody can put a link in its place meanwhile. The
folder itself may be, or lie behind, a link: that is the choice of whoever named it.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.regular_files import NoRegularFileError, open_regular
from prefect_regional_diffusion.tasks.storage.leftovers import tidy
from prefect_regional_diffusion.tasks.storage.unfit import UnfitError

logger = plain_logger(__name__)

PRIVATE = ".regional"
"""A folder of this name is its owner's alone, with all that is made below it."""

_DEEPEST = 16
"""Folders within folders that are listed; the store's own names have two."""

_AS_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TO_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_NO_FOLDER = (errno.ELOOP, errno.ENOTDIR)
_NO_FILE = (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EACCES)
"""What has become a link, a socket or a device since it was looked at; somebody's own file."""


class Listed(NamedTuple):
    """A file: its path below the root, its size in bytes, and when it was written (Unix seconds)."""

    name: str
    size: int
    written: float


class LocalFiles:
    """Files by their paths below `root`, a folder that need not be there yet. All but UnfitError are OSErrors."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def read(self, name: str, most: int) -> bytes | None:
        """A file's bytes; None if it is not there. Raises UnfitError for what is no file, or has over `most` bytes."""
        *folders, last = name.split("/")
        try:
            with self._open_folder(folders) as folder:
                descriptor = _open_file(last, folder)
        except FileNotFoundError:
            return None
        try:
            return _read(descriptor, most)
        finally:
            os.close(descriptor)

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically; it is durable when this returns. What is in its way and no file is put aside."""
        *folders, last = name.split("/")
        missing = list(takewhile(lambda folder: not folder.exists(), (self.root, *self.root.parents)))
        for folder in reversed(missing):
            folder.mkdir(mode=_mode_of_folders(folder), exist_ok=True)
        parents = list[int]()
        with self._open_folder(folders, parents=parents) as folder:
            part = f".{last}.{uuid.uuid4().hex}.part"
            try:
                self._fill(os.open(part, _TO_MAKE, self._mode_of_files, dir_fd=folder), data)
                _put(part, last, folder)
            except OSError:
                with suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=folder)
                raise
            # A file is durable under its name when its folder is; so is a folder that was just made.
            for descriptor in (folder, *parents):
                _sync(descriptor)
            for above in {folder.parent for folder in missing}:
                _sync_path(above)
            tidy(folder, "/".join([str(self.root), *folders]), last)

    def remove(self, name: str) -> None:
        """Remove a file or a link; what is not there, or is a folder, is left alone."""
        *folders, last = name.split("/")
        with (
            suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError, UnfitError),
            self._open_folder(folders) as descriptor,
        ):
            os.unlink(last, dir_fd=descriptor)

    def names(self, folder: str) -> list[str]:
        """Names of everything directly in a folder; none if it is not there or no folder."""
        try:
            with self._open_folder(_parts(folder)) as descriptor:
                return os.listdir(descriptor)  # noqa: PTH208 - there is no path, on purpose
        except (FileNotFoundError, UnfitError):
            return []

    def files(self, below: str) -> Iterator[Listed]:
        """All plain files below a folder. What vanishes meanwhile, or cannot be looked into, is left out."""
        pending = [_parts(below)]
        while pending:
            parts = pending.pop()
            with suppress(FileNotFoundError, PermissionError, UnfitError), self._open_folder(parts) as folder:
                for name, status in _entries(folder):
                    if stat.S_ISREG(status.st_mode):
                        yield Listed("/".join([*parts, name]), status.st_size, status.st_mtime)
                    elif stat.S_ISDIR(status.st_mode) and len(parts) < _DEEPEST:
                        pending.append([*parts, name])

    @contextmanager
    def _open_folder(self, folders: list[str], parents: list[int] | None = None) -> Generator[int]:
        """A descriptor of a folder below the root. With `parents`, missing folders are made, and their parents' added.

        Raises UnfitError where something else than a folder is in the way; what is written goes into its place.
        """
        with ExitStack() as stack:
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            for name in folders:
                above = descriptor
                descriptor = _enter(above, name) if parents is None else self._enter_or_make(above, name, parents)
                stack.callback(os.close, descriptor)
            yield descriptor

    def _enter_or_make(self, above: int, name: str, parents: list[int]) -> int:
        """A folder in another one, made if need be."""
        for _ in range(9):
            try:
                return _enter(above, name)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(name, _mode_of_folders(self.root), dir_fd=above)
                    parents.append(above)
            except UnfitError:
                logger.warning("%s in %s is no folder; it was removed", name, self.root)
                # A link or a file alone: a folder that another writer has made meanwhile cannot be removed like this.
                with suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                    os.unlink(name, dir_fd=above)
        return _enter(above, name)

    def _fill(self, descriptor: int, data: bytes) -> None:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)

    @property
    def _mode_of_files(self) -> int:
        return 0o600 if PRIVATE in self.root.parts else 0o666


def _mode_of_folders(folder: Path) -> int:
    return 0o700 if PRIVATE in folder.parts else 0o777


def _parts(folder: str) -> list[str]:
    return folder.split("/") if folder else []


def _entries(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    """Everything in a folder, but for what vanishes meanwhile."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False)


def _enter(above: int, name: str) -> int:
    """A descriptor of a folder in another one. Raises UnfitError for a link, or what is no folder."""
    try:
        return os.open(name, _AS_FOLDER, dir_fd=above)
    except OSError as error:
        if error.errno in _NO_FOLDER:
            raise UnfitError(f"{name} is no folder") from error
        raise


def _read(descriptor: int, most: int) -> bytes:
    """All bytes of an open file. Raises UnfitError if it has over `most` bytes."""
    # Sparse files have a size that no disk has.
    if os.fstat(descriptor).st_size <= most:
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(most + 1)
        if len(data) <= most:
            return data
    raise UnfitError(f"it has more than the {most} bytes that it could have")


def _open_file(name: str, folder: int) -> int:
    try:
        return open_regular(name, folder=folder)
    except NoRegularFileError as error:
        raise UnfitError(f"it is {error.kind}") from error
    except OSError as error:
        if error.errno in _NO_FILE:
            raise UnfitError(f"it is no file that can be read ({error.strerror})") from error
        raise


def _put(part: str, last: str, folder: int) -> None:
    """Give a written file its name. A link there is replaced; a folder is then called like what killed writers left."""
    try:
        os.replace(part, last, src_dir_fd=folder, dst_dir_fd=folder)
    except IsADirectoryError:
        logger.warning("%s is a folder where a file should be; it was renamed", last)
        os.rename(last, f".{last}.{uuid.uuid4().hex}.part", src_dir_fd=folder, dst_dir_fd=folder)
        os.replace(part, last, src_dir_fd=folder, dst_dir_fd=folder)


def _sync_path(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: int) -> None:
    """Make the names in a folder durable, where the file system can; some that are mounted over a network cannot."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
