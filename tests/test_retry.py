"""The retry loop: which failures are tried again, for how long, with which pauses, and what is told meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from prefect_regional_diffusion.tasks.machine import retry
from prefect_regional_diffusion.tasks.machine.retry import Retry


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, on a clock that only they move."""
    made: list[float] = []

    async def pause(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(retry.time, "monotonic", lambda: sum(made))
    monkeypatch.setattr(retry.time, "sleep", made.append)
    monkeypatch.setattr(retry.asyncio, "sleep", pause)
    return made


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [error] * times

    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    return work


def called(policy: Retry, work: Callable[[], str], kind: str) -> str:
    async def awaited() -> str:
        return work()

    return policy.call(work) if kind == "call" else asyncio.run(policy.acall(awaited))


def passing(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


BOTH = pytest.mark.parametrize("kind", ["call", "acall"])


@BOTH
def test_pauses_double_up_to_the_longest_and_each_is_told(kind: str, pauses: list[float]) -> None:
    told: list[tuple[str, float]] = []
    policy = Retry(100, passing, lambda error, pause: told.append((str(error), pause)), longest_pause=2)
    assert called(policy, failing(6, ConnectionError("down")), kind) == "done"
    assert pauses == [0.25, 0.5, 1, 2, 2, 2]
    assert told == [("down", pause) for pause in pauses]
    assert policy.waited == sum(pauses)


@BOTH
def test_no_pause_goes_beyond_the_time_that_is_given(kind: str, pauses: list[float]) -> None:
    with pytest.raises(ConnectionError, match="down"):
        called(Retry(4, passing), failing(100, ConnectionError("down")), kind)
    assert pauses == [0.25, 0.5, 1, 2]


@BOTH
@pytest.mark.parametrize(("seconds", "error"), [(100, ValueError("wrong")), (0, ConnectionError("down"))])
def test_what_does_not_pass_is_raised_at_once(kind: str, seconds: float, error: Any, pauses: list[float]) -> None:
    with pytest.raises(type(error), match=str(error)):
        called(Retry(seconds, passing), failing(1, error), kind)
    assert pauses == []
