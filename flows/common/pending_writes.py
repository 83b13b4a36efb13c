"""Pipelined writes: a task gives its result before it is written, and leaving the block waits for all writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")


class PendingWrites:
    """Work that goes on beside the flow until it is durable. Its errors end the block.

    No `asyncio.TaskGroup`: that cancels the writes of what is already made when something else fails.
    """

    def __init__(self) -> None:
        self._pending = set[asyncio.Task[Any]]()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                await self.drain_to(0)
        finally:
            # Results are kept, also when the flow is told to stop.
            await asyncio.gather(*self._pending, return_exceptions=True)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin work beside the flow."""
        task = asyncio.create_task(work)
        self._pending.add(task)
        return task

    async def first_result(self, work: Callable[[asyncio.Future[T]], Coroutine[Any, Any, object]]) -> T:
        """Start work, and wait for the result that it sets the future to; it goes on after that until it is durable."""
        ready: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = self.start(work(ready))
        # Work that fails before it has a result would never set it.
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await task
        return ready.result()

    def all_pending(self) -> asyncio.Future[Any]:
        """All that is pending now, as one thing to wait for."""
        writes = asyncio.gather(*self._pending)
        # Awaiting it raises their errors; where nobody does, `drain_to` raises them.
        writes.add_done_callback(lambda future: future.cancelled() or future.exception())
        return writes

    async def drain_to(self, number: int) -> None:
        """Wait until at most so many are pending. Raises what went wrong in one that has ended."""
        while True:
            for task in [task for task in self._pending if task.done()]:
                self._pending.remove(task)
                task.result()
            if len(self._pending) <= number:
                return
            await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
