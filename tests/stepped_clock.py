"""A system clock that steps for chosen processes alone; the machine's own clock stays as it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
_COMPILER = "cc"


def can_step() -> bool:
    """Whether there is a C compiler, which the clock needs."""
    return shutil.which(_COMPILER) is not None


class SteppedClock:
    """The clock of all processes that are started with `variables` in their environment, and of their children."""

    def __init__(self, folder: Path) -> None:
        self._shift, library = folder / "clock", folder / "stepped_clock.so"
        self.step(0)
        command = [_COMPILER, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        # A server is given no variables of ours, but those of the loader.
        self.variables = {"LD_PRELOAD": str(library), "LD_STEPPED_CLOCK": str(self._shift)}

    def step(self, seconds: int) -> None:
        """From now on the clock is ahead of the machine's by so much (0: it is right again)."""
        # Written into the same file: the processes have mapped it.
        with self._shift.open("r+b" if self._shift.exists() else "wb", buffering=0) as file:
            file.write(seconds.to_bytes(8, "little", signed=True))
