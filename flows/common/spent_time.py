"""Where the time of a run or a command went."""

from __future__ import annotations

import time
from collections.abc import Mapping

from prefect_regional_diffusion.tasks.machine.metrics import tell
from prefect_regional_diffusion.tasks.machine.step_listener import began

PARTS = {
    "start": ("start", "open store", "build masks"),
    "load": ("encode prompts", "load model"),
    "sample": ("sample",),
}
"""Stages of a record by the part that the summary shows; all others, which decode and write, are `write`."""

WRITE = "write"
_PART_OF = {stage: part for part, stages in PARTS.items() for stage in stages}


class Clock:
    """Seconds by stage, from the command's beginning if a command has called, or from now. A stage may come again."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = began.get() or time.monotonic()

    def lap(self, stage: str) -> None:
        """What was done since the last lap was this."""
        now = time.monotonic()
        self.laps[stage] = round(self.laps.get(stage, 0.0) + now - self._last, 3)
        tell("work_seconds", now - self._last, _PART_OF.get(stage, WRITE))
        self._last = now


def spent(stages: Mapping[str, float], total: float) -> str:
    """All seconds of a command, and its parts, which add up to them to the last digit.

    `stages` are the seconds of a record, which begin when the command does; what comes after them is written.
    """
    end_times, elapsed = list[float](), 0.0
    for part in PARTS.values():
        elapsed += sum(stages.get(stage, 0.0) for stage in part)
        end_times.append(round(min(elapsed, total), 1))
    end_times.append(round(total, 1))
    parts = [end - begin for begin, end in zip([0.0, *end_times], end_times, strict=False)]
    breakdown = ", ".join(f"{name} {seconds:.1f}" for name, seconds in zip([*PARTS, WRITE], parts, strict=True))
    return f"{end_times[-1]:.1f} s ({breakdown})"
