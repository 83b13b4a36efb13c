"""Model folders that a module's tests share: links to the files, because so many copies keep a disk busy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_first_seen: dict[Path, dict[Path, tuple[int, int]]] = {}


def link(made: Path, folder: Path) -> None:
    """Put the files of a folder into another one, too. A test that changes one there must replace it."""
    files = _sizes_and_times(made)
    assert _first_seen.setdefault(made, files) == files, "a test has written through a link"
    shutil.copytree(made, folder, copy_function=os.link, dirs_exist_ok=True)


def _sizes_and_times(folder: Path) -> dict[Path, tuple[int, int]]:
    stats = {file: file.stat() for file in folder.rglob("*") if file.is_file()}
    return {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}
