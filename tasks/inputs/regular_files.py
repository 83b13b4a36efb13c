"""Regular files opened for reading; whatever else has a name in a file system is told as what it is, and not read.

A pipe without a writer blocks where it is opened, and a device may be read for ever.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = (
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


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, opened without waiting for anybody. Raises NoRegularFileError, FileNotFoundError or OSError."""
    # To open some devices is to do something with them.
    _check(os.stat(path).st_mode)  # noqa: PTH116 - the same call for text and paths
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        # Another may lie there by now: only what is open stays what it is.
        _check(os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NoRegularFileError(next((kind for is_that, kind in _KINDS if is_that(mode)), "no regular file"))
