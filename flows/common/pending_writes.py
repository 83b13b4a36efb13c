"""Tasks that hand on what they made while they still write it: the next may begin, and nothing is done too early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Ahead:
    """What goes on beside the flow. When the block is left, all of it has ended; its errors end the block."""

    def __init__(self) -> None:
        self._going = set[asyncio.Task[Any]]()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                await self.at_most(0)
        finally:
            # What was made is not lost, also when the flow is told to stop.
            await asyncio.gather(*self._going, return_exceptions=True)

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Let something go on beside the flow."""
        task = asyncio.create_task(work)
        self._going.add(task)
        return task

    async def made(self, work: Callable[[asyncio.Future[T]], Coroutine[Any, Any, object]]) -> T:
        """What `work` hands on by setting the future; it goes on after that until it is durable."""
        made: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = self.begin(work(made))
        # Work that fails before it has made anything would never set it.
        await asyncio.wait({task, made}, return_when=asyncio.FIRST_COMPLETED)
        if not made.done():
            await task
        return made.result()

    def so_far(self) -> asyncio.Future[Any]:
        """All that goes on now, as one thing to wait for."""
        together = asyncio.gather(*self._going)
        # Whoever waits for it is told; where nobody does, `at_most` tells what went wrong.
        together.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return together

    async def at_most(self, number: int) -> None:
        """Wait until at most so many still go on. Raises what went wrong in one that has ended."""
        while True:
            for task in [task for task in self._going if task.done()]:
                self._going.remove(task)
                task.result()
            if len(self._going) <= number:
                return
            await asyncio.wait(self._going, return_when=asyncio.FIRST_COMPLETED)
