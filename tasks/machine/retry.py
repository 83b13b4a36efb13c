"""The one retry loop of tasks, flows and deployments: work is done again while it fails for a reason that may pass.

Not tenacity, which Prefect does not bring along: it would take the place of the two short loops below, and every caller
would still say which failures are transient, for how long to retry, and what to log meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE = 0.25


def say_nothing(_error: Exception, _pause: float) -> None:
    """For work whose failures are expected."""


class Retry:
    """Attempts at one piece of work, for at most `seconds`, with pauses that double up to `longest_pause` seconds.

    `passes` is whether a failure is transient; `tell` is called with it, and with the seconds of the pause that
    follows. Any other failure, and the one after which no time is left for another pause, is raised.
    """

    def __init__(
        self,
        seconds: float,
        passes: Callable[[Exception], bool],
        tell: Callable[[Exception, float], None] = say_nothing,
        longest_pause: float = 15.0,
    ) -> None:
        self._seconds, self._passes, self._tell, self._longest_pause = seconds, passes, tell, longest_pause
        self._began, self._pause = time.monotonic(), min(_FIRST_PAUSE, longest_pause)

    @property
    def waited(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def call(self, work: Callable[[], T]) -> T:
        """What `work` returns."""
        while True:
            try:
                return work()
            except Exception as error:  # noqa: BLE001 - the caller says which of them pass
                pause = self._pause_after(error)
            time.sleep(pause)

    async def acall(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` returns, awaited."""
        while True:
            try:
                return await work()
            except Exception as error:  # noqa: BLE001 - the caller says which of them pass
                pause = self._pause_after(error)
            await asyncio.sleep(pause)

    def _pause_after(self, error: Exception) -> float:
        pause = self._pause
        if not self._passes(error) or self.waited + pause > self._seconds:
            raise error
        self._tell(error, pause)
        self._pause = min(2 * pause, self._longest_pause)
        return pause
