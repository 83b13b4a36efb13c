"""Calls that wait for a store, made all at once: an object store takes its time for each answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

_WAITING = ThreadPoolExecutor(16, thread_name_prefix="store")
"""Threads of their own, so that a store that does not answer holds up no sampling."""


async def at_once(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """The function's value for each item, in their order. Raises the first error, once all calls have ended."""
    calls = [asyncio.wrap_future(_WAITING.submit(copy_context().run, function, item)) for item in items]
    if calls:
        await asyncio.wait(calls)
    return [call.result() for call in calls]
