"""What an attacker would leave lying about: pickles and modules that touch a file when they are read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path


class Trap:
    """Unpickling it creates the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)  # pyright: ignore[reportDeprecated] - what an attacker writes


def pickled(mark: Path) -> bytes:
    """A pickle that creates the file `mark` when it is read."""
    return pickle.dumps(Trap(mark))


def module(mark: Path) -> str:
    """A module that creates the file `mark` when it is imported, with a class `Evil`."""
    return f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Evil:\n    pass\n"
