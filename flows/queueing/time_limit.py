"""How long a run may take: the tag `time-limit:MINUTES` of a run, or of the deployment that it was made of."""

from __future__ import annotations

from collections.abc import Iterable

from prefect_regional_diffusion.sampling_core.errors import BadInput

TIME_LIMIT = "time-limit:"
"""How the tag begins."""

_MOST_MINUTES = 100_000.0
"""More than two months."""
_ALLOWED = f"minutes, more than 0 and at most {_MOST_MINUTES:.0f}"


def checked_minutes(field: str, minutes: float) -> float:
    """The minutes. Raises BadInput, by the name of a field, for what is no time limit."""
    if not 0 < minutes <= _MOST_MINUTES:  # nor what is not a number
        raise BadInput(field, minutes, _ALLOWED)
    return minutes


def limit_tags(minutes: float | None) -> list[str]:
    """The tags of a run that may take so many minutes; None: no tag."""
    return [] if minutes is None else [f"{TIME_LIMIT}{minutes:g}"]


def minutes_allowed(tags: Iterable[str]) -> float | None:
    """The least that a run's tags name; None: as long as it likes. Raises BadInput for a tag that names no time."""
    limits = [_minutes(tag) for tag in sorted(tags) if tag.startswith(TIME_LIMIT)]
    return min(limits, default=None)


def _minutes(tag: str) -> float:
    text = tag.removeprefix(TIME_LIMIT)
    try:
        minutes = float(text)
    except ValueError:
        raise BadInput(f"the tag {TIME_LIMIT}…", text, _ALLOWED) from None
    return checked_minutes(f"the tag {TIME_LIMIT}…", minutes)
