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

_visited: set[str] = set()
"""Folders that this process has looked through, by path."""


def old_leftovers(files: Iterable[tuple[str, float]], now: float) -> list[str]:
    """Names of the leftovers among files (name, modification time) that are older than OLD_SECONDS at `now`."""
    return [name for name, mtime in files if now - mtime > OLD_SECONDS and _LEFTOVER.fullmatch(name)]


def tidy(folder: int, path: str, new_file: str) -> None:
    """Remove what was left long ago in the folder of a file that was just written; once per folder and process.

    `folder` is its descriptor, `path` its key in `_visited`, `new_file` the file. The file's modification time counts
    as now: it comes from the same clock as the others', wherever the disk is.
    """
    if path in _visited:
        return
    _visited.add(path)
    # Others tidy up at the same time, and what cannot be removed does no harm.
    with suppress(OSError), os.scandir(folder) as entries:
        leftovers = [
            entry for entry in entries if _LEFTOVER.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        ]
        times = [(entry.name, entry.stat(follow_symlinks=False).st_mtime) for entry in leftovers]
        for name in old_leftovers(times, os.stat(new_file, dir_fd=folder, follow_symlinks=False).st_mtime):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
