"""Which runs the reaper starts again, and which it leaves alone. That it does so in earnest: tests/test_up.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.schemas.objects import StateType

from flows.reap import Patience, Sighting, judge

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PATIENCE = Patience(
    running=timedelta(seconds=100), pending=timedelta(seconds=300), crashed=timedelta(seconds=60), restarts=5
)


def seen(state: StateType, silent: float, restarts: int = 0) -> Sighting:
    return Sighting(state, NOW - timedelta(seconds=silent), restarts)


@pytest.mark.parametrize(
    ("state", "silent", "restarts", "verdict"),
    [
        (StateType.RUNNING, 35, 0, "leave"),  # a heartbeat comes every 30 s
        (StateType.RUNNING, 99, 0, "leave"),
        (StateType.RUNNING, 101, 0, "start again"),
        (StateType.PENDING, 101, 0, "leave"),  # starting takes its time
        (StateType.PENDING, 301, 0, "start again"),
        (StateType.CRASHED, 7, 0, "leave"),  # the worker reports a crash again after about 5 s
        (StateType.CRASHED, 61, 0, "start again"),
        (StateType.CRASHED, 61, 4, "start again"),
        (StateType.CRASHED, 61, 5, "give up"),
        (StateType.RUNNING, 101, 5, "give up"),
        (StateType.CANCELLING, 101, 0, "cancel"),  # or its slot would be taken for ever
        (StateType.CANCELLING, 101, 9, "cancel"),
        (StateType.CANCELLING, 35, 0, "leave"),
    ],
)
def test_verdicts(state: StateType, silent: float, restarts: int, verdict: str) -> None:
    assert judge(seen(state, silent, restarts), NOW, PATIENCE) == verdict


@given(st.sampled_from(StateType), st.floats(0, 59.9), st.integers(0, 100))
def test_a_run_that_was_heard_of_within_a_minute_is_never_touched(
    state: StateType, silent: float, restarts: int
) -> None:
    """Also one that an automation has called crashed, and which sends heartbeats all the same."""
    assert judge(seen(state, silent, restarts), NOW, PATIENCE) == "leave"


@given(
    st.sampled_from(
        [StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.SCHEDULED, StateType.PAUSED]
    ),
    st.floats(0, 1e7),
)
def test_what_has_ended_or_waits_is_never_touched(state: StateType, silent: float) -> None:
    assert judge(seen(state, silent), NOW, PATIENCE) == "leave"


@given(st.floats(-3600, 0), st.sampled_from(StateType))
def test_a_clock_that_lags_behind_the_server_kills_nothing(silent: float, state: StateType) -> None:
    assert judge(seen(state, silent), NOW, PATIENCE) == "leave"
