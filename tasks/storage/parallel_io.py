"""Calls that wait for a store, made all at once: an object store takes its time for each answer.

Not fsspec's `cat_ranges` and `pipe` of many paths: only asynchronous file systems do those at once, and they raise the
first error only when all have ended. Here each object is retried, checked and decoded by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from torch import Tensor

from prefect_regional_diffusion.sampling_core.tensors.specs import Specs
from prefect_regional_diffusion.tasks.storage.keys import TensorKey
from prefect_regional_diffusion.tasks.storage.store import Store

A = TypeVar("A")
B = TypeVar("B")

_WAITING = ThreadPoolExecutor(16, thread_name_prefix="store")
"""Threads of their own, so that a store that does not answer holds up no sampling."""


async def map_concurrently(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """The function's value for each item, in order. Raises the first error; what has not begun then never does."""
    calls = [asyncio.wrap_future(_WAITING.submit(copy_context().run, function, item)) for item in items]
    if calls:
        done, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
        for call in pending:
            call.cancel()
        errors = [error for error in (call.exception() for call in done) if error is not None]
        if errors:
            raise errors[0]
    return [call.result() for call in calls]


async def read_all(store: Store, specs: Mapping[TensorKey, Specs]) -> dict[TensorKey, dict[str, Tensor]]:
    """The tensors under those of the keys that the store has, if they are those that the specs name."""
    results = zip(specs, await map_concurrently(lambda item: store.read_tensors(*item), specs.items()), strict=True)
    return {key: tensors for key, tensors in results if tensors is not None}


async def write_all(store: Store, objects: Mapping[TensorKey, dict[str, Tensor]]) -> None:
    """Write tensors by their keys; all are durable when this returns."""
    await map_concurrently(lambda item: store.write_tensors(*item), objects.items())
