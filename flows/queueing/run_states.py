"""What our runs are known by on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

TAG = "regional"
"""Runs of our deployments have it: the reaper looks after those alone."""

UPKEEP = "regional-upkeep"
"""Runs of the reaper's deployment have this one instead: nobody has asked for them."""

GIVEN_UP = "GivenUp"
"""Name of the state of a run that crashed too often; its type stays CRASHED."""


def ended_badly(state: State | None) -> bool:
    """Whether a run has ended without a result, and nobody starts it again. After a crash, the reaper does."""
    return state is not None and (state.is_failed() or state.is_cancelled() or state.name == GIVEN_UP)
