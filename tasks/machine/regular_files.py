"""Regular files, opened; for anything else in a file system the error names its kind, and it is not opened.

A pipe without a writer blocks where it is opened, a device may be read for ever, and a link leads to what nobody has
checked.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class NoRegularFileError(OSError):
    """What is there is no regular file; `kind` says what it is, such as "a pipe"."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def open_regular(path: str | Path, flags: int = os.O_RDONLY, folder: int | None = None) -> int:
    """A descriptor of a regular file, opened without waiting for anybody; one that is made has mode 0600.

    A link at the end of the path is not followed; who wants that gives the real path. A relative path begins at the
    descriptor `folder`, if there is one. Raises NoRegularFileError, or OSError where a file cannot be opened.
    """
    try:
        # To open some devices is to do something with them.
        _check(os.stat(path, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(path, flags, 0o600, dir_fd=folder)
    try:
        # Another may lie there by now: only what is open stays what it is.
        _check(os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NoRegularFileError(next((kind for is_that, kind in _KINDS if is_that(mode)), "no regular file"))
