"""Room for fetched models: the least recently used are removed, but none that a process still uses or fetches."""

from __future__ import annotations

import fcntl
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.settings import settings

logger = plain_logger(__name__)


def lock_file(entry: Path, lock: Literal["fetch", "use"]) -> Path:
    """What is locked by who fetches an entry of the cache, and shared by all who use it. It lies beside the entry."""
    return entry.with_name(f"{entry.name}.{lock}")


def make_room(field: str, url: str, cache: Path, entry: Path, needed: int) -> None:
    """Remove other entries of a cache until `needed` bytes fit into the bound of the settings beside the rest.

    `entry` is what is fetched. Raises ModelError if they never fit.
    """
    most = settings().max_model_cache_bytes
    if needed > most:
        raise ModelError(field, url, f"has {needed} bytes, more than {most} (REGIONAL_MAX_MODEL_CACHE_BYTES)")
    others = [folder for folder in cache.resolve().iterdir() if folder.is_dir() and folder != entry]
    sizes = {folder: _bytes(folder) for folder in others}
    for folder in sorted(others, key=lambda folder_path: folder_path.stat().st_mtime):
        if sum(sizes.values()) + needed <= most:
            return
        if _remove_unused(folder):
            logger.info("removed %s, which was used longest ago", folder)
            del sizes[folder]
    room = most - sum(sizes.values())
    if room < needed:
        raise ModelError(
            field,
            url,
            f"has {needed} bytes, and REGIONAL_MAX_MODEL_CACHE_BYTES leaves {max(0, room)} beside models in use",
        )


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        # Another process may remove it meanwhile.
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def _remove_unused(folder: Path) -> bool:
    """Whether an entry could be removed: nobody fetches it or uses it."""
    with lock_file(folder, "fetch").open("ab") as fetches, lock_file(folder, "use").open("ab") as uses:
        try:
            for lock in (fetches, uses):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True
