"""What the process that waits for runs has in memory, told to its worker: a file beside the socket of both.

The process writes it before it says that a run has ended; its parent removes it before it says that the process has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_NAME = "held"


def write_held(folder: str, names: Iterable[str]) -> None:
    """Names of models and adapters, as jobs call them, in the folder of a resident process."""
    path = Path(folder) / _NAME
    part = path.with_suffix(".part")
    with suppress(OSError):  # the worker is gone
        part.write_text(json.dumps(sorted(names)))
        part.replace(path)


def remove_held(folder: str) -> None:
    """Nothing is in memory any more."""
    with suppress(OSError):
        (Path(folder) / _NAME).unlink(missing_ok=True)


def read_held(folder: str) -> frozenset[str]:
    """What `write_held` has written last; empty if nothing is in memory."""
    try:
        return frozenset(json.loads((Path(folder) / _NAME).read_text()))
    except (OSError, ValueError):
        return frozenset()
