"""Context variables that a command sets for a flow: the listener for finished steps, and when the command began."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

StepListener = Callable[[int, int], None]
"""Called with the number of finished steps and of all steps."""

listener: ContextVar[StepListener | None] = ContextVar("listener", default=None)

began: ContextVar[float | None] = ContextVar("began", default=None)
"""When the command's process began, on the monotonic clock."""


def report_step(done: int, total: int) -> None:
    """Call the listener of this context, if any."""
    callback = listener.get()
    if callback is not None:
        callback(done, total)
