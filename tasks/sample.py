"""Tasks: steps of one run, or of several in the same forwards; what they have in common is computed once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.run_batch import Chunk, RunBatch
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress
from prefect_regional_diffusion.tasks.storage.keys import TensorKey
from prefect_regional_diffusion.tasks.storage.parallel_io import map_concurrently

Inputs = asyncio.Future[Any]
"""Done when masks, prompts and init images are durable."""


class Sampled(NamedTuple):
    """Steps that were taken, and the states that they led to, by their keys."""

    chunk: Chunk
    states: Mapping[TensorKey, RunProgress]


def begin_steps(batch: RunBatch, steps: int) -> asyncio.Task[Sampled]:
    """Begin to take so many steps, in a thread. Their task run follows: it takes longer to begin than a step to be sent
    to a device. What is logged meanwhile is the flow run's.
    """

    def sample() -> Sampled:
        keys_before = set(batch.states())
        chunk = batch.advance(steps)
        return Sampled(chunk, {key: member for key, member in batch.states().items() if key not in keys_before})

    return asyncio.create_task(asyncio.to_thread(sample))


@task("base-only steps {first}-{last}")
async def base_only_steps(
    sampling: asyncio.Task[Sampled], first: int, last: int, inputs: Inputs, ready: asyncio.Future[Chunk]
) -> None:
    """Steps in which the base has the whole canvas (counted from 1, both included)."""
    await _sample(sampling, inputs, ready)


@task("regional steps {first}-{last}")
async def regional_steps(
    sampling: asyncio.Task[Sampled], first: int, last: int, inputs: Inputs, ready: asyncio.Future[Chunk]
) -> None:
    """Steps in which regions take part (counted from 1, both included)."""
    await _sample(sampling, inputs, ready)


async def _sample(sampling: asyncio.Task[Sampled], inputs: Inputs, ready: asyncio.Future[Chunk]) -> None:
    """Wait for steps that have begun, set `ready`, and store their states once `inputs` are durable.

    That order keeps the store consistent: a state without its inputs would be continued with other masks or prompts,
    and be another picture's. The next chunk may begin once `ready` is set; this one is done when its states are
    durable.
    """
    sampled = await sampling
    ready.set_result(sampled.chunk)
    await asyncio.shield(inputs)
    await map_concurrently(
        lambda item: item[1].run.store.write_tensors(item[0], item[1].to_tensors()), sampled.states.items()
    )
