"""Calls made all at once: order, errors, and what an error stops."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from prefect_regional_diffusion.tasks.storage.parallel_io import map_concurrently


def test_values_come_in_order_and_calls_run_side_by_side() -> None:
    meeting = threading.Barrier(8)

    def waits(number: int) -> int:
        meeting.wait(30)
        time.sleep(0.01 * (8 - number))
        return number * number

    assert asyncio.run(map_concurrently(waits, range(8))) == [number * number for number in range(8)]
    assert asyncio.run(map_concurrently(waits, [])) == []


def test_the_first_error_is_raised_and_what_has_not_begun_never_does() -> None:
    """As many calls as wait for a store that is away must not each be patient in their turn."""
    begun: list[int] = []

    def fails(number: int) -> None:
        begun.append(number)
        time.sleep(0.2)
        raise ConnectionError(f"away {number}")

    with pytest.raises(ConnectionError, match="away"):
        asyncio.run(map_concurrently(fails, range(200)))
    time.sleep(0.5)
    assert len(begun) <= 2 * 16
