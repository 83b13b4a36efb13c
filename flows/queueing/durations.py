"""Durations in the words of people."""

from __future__ import annotations


def estimated(seconds: float) -> str:
    """About how long something takes, no finer than anybody knows it."""
    return f"{max(5, 5 * round(seconds / 5))} s" if seconds < 90 else measured(seconds)


def measured(seconds: float) -> str:
    """How long something has taken."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
