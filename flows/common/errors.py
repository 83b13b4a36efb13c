"""How a flow can end that is nobody's mistake. Without imports, so that the command line starts at once."""

from __future__ import annotations

from typing import Any


class IncompleteRenderError(RuntimeError):
    """Some pictures are missing, once everything that can be drawn is. `done` is what the flow would have returned."""

    def __init__(self, message: str, done: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.done = done


class TimeLimitError(RuntimeError):
    """A run has taken longer than it may. The message says how far it came."""
