"""Who hears of finished steps: the command line's bar, if there is one."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

StepListener = Callable[[int, int], None]
"""Called with the number of finished steps and of all steps."""

listener: ContextVar[StepListener | None] = ContextVar("listener", default=None)


def report_step(done: int, total: int) -> None:
    """Tell the listener of this context, if any."""
    hears = listener.get()
    if hears is not None:
        hears(done, total)
