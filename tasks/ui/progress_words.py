"""What a run's progress bar on the server says, and how programs read it."""

from __future__ import annotations

import re

PROGRESS = "progress"
"""Key of the bar among a run's artifacts."""

_STEPS = re.compile(r"Step (\d{1,9}) of (\d{1,9})\b")


def progress_words(done: int, total: int, jobs: int) -> str:
    """So many finished steps of all, in so many jobs that are drawn together."""
    return f"Step {done} of {total}" + (f" in {jobs} jobs" if jobs > 1 else "")


def steps_in(words: str) -> tuple[int, int] | None:
    """Finished steps and all of them; None of a bar that counts something else."""
    match = _STEPS.match(words)
    return (int(match[1]), int(match[2])) if match else None
