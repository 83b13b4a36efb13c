"""What writers that were killed have left in a place: probes, and files that are half written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress

OLD_SECONDS = 3600.0
"""So old is nothing that somebody still writes."""

_PROBE = r"probe-[0-9a-f]{32}"
_LEFTOVER = re.compile(rf"{_PROBE}|\.({_PROBE}|.+\.(safetensors|json|png))\.[0-9a-f]{{32}}\.part")
"""Names that nobody else gives: each has 32 random digits."""

_tidied: set[str] = set()
"""Folders that this process has looked through, by path."""


def old_leftovers(written: Iterable[tuple[str, float]], now: float) -> list[str]:
    """Of files, by name and the time when they were written: those that were left, long before `now`."""
    return [name for name, when in written if now - when > OLD_SECONDS and _LEFTOVER.fullmatch(name)]


def tidy(folder: int, path: str, written: str) -> None:
    """Remove what was left long ago in the folder of a file that was just written; once per folder and process.

    `folder` is its descriptor, `path` what it is remembered by, `written` the file. That one's own time is now: it
    comes from the same clock as theirs, wherever the disk is.
    """
    if path in _tidied:
        return
    _tidied.add(path)
    # Others tidy up at the same time, and what cannot be removed does no harm.
    with suppress(OSError), os.scandir(folder) as entries:
        mine = [entry for entry in entries if _LEFTOVER.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]
        times = [(entry.name, entry.stat(follow_symlinks=False).st_mtime) for entry in mine]
        for name in old_leftovers(times, os.stat(written, dir_fd=folder, follow_symlinks=False).st_mtime):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
