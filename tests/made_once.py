"""What many tests ask for and takes long to make: made once in a run of the tests, whatever process asks first, then
copied.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Concatenate, ParamSpec

P = ParamSpec("P")
_shared: list[Path] = []


def keep_in(folder: Path) -> None:
    """Keep what is made from now on in a folder, which other processes may use as well."""
    folder.mkdir(exist_ok=True)
    _shared[:] = [folder]


def made_once(make: Callable[Concatenate[Path, P], str]) -> Callable[Concatenate[Path, P], str]:
    """A function that makes a folder, always the same one for the same arguments, from which later calls copy it."""

    @wraps(make)
    def place(folder: Path, *args: P.args, **kwargs: P.kwargs) -> str:
        if not _shared:
            return make(folder, *args, **kwargs)
        told = repr((make.__name__, args, sorted(kwargs.items())))
        kept = _shared[0] / sha256(told.encode()).hexdigest()
        with kept.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                with tempfile.TemporaryDirectory(dir=_shared[0]) as unfinished:
                    new = Path(unfinished) / "new"
                    make(new, *args, **kwargs)
                    new.rename(kept)
        # Tests may change what they get, and what is new has a time of its own.
        shutil.copytree(kept, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        return str(folder)

    return place
