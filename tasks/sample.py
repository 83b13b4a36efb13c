"""Tasks: steps of one run, or of several in the same forwards; what they have in common is computed once."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.run_batch import Chunk, RunBatch
from prefect_regional_diffusion.tasks.storage.parallel_io import map_concurrently

Inputs = asyncio.Future[Any]
"""Done when masks, prompts and init images are durable."""


@task("base-only steps {first}-{last}")
async def base_only_steps(batch: RunBatch, first: int, last: int, inputs: Inputs, ready: asyncio.Future[Chunk]) -> None:
    """Steps in which the base has the whole canvas (counted from 1, both included)."""
    await _sample(batch, last - first + 1, inputs, ready)


@task("regional steps {first}-{last}")
async def regional_steps(batch: RunBatch, first: int, last: int, inputs: Inputs, ready: asyncio.Future[Chunk]) -> None:
    """Steps in which regions take part (counted from 1, both included)."""
    await _sample(batch, last - first + 1, inputs, ready)


async def _sample(batch: RunBatch, steps: int, inputs: Inputs, ready: asyncio.Future[Chunk]) -> None:
    """Sample, set `ready`, and store the states once `inputs` (masks, prompts and init images) are durable.

    That order keeps the store consistent: a state without its inputs would be continued with other masks or prompts,
    and be another picture's. The next chunk may begin once `ready` is set; this one is done when its states are
    durable.
    """
    keys_before = set(batch.states())
    chunk = await asyncio.to_thread(batch.advance, steps)
    new = {
        key: (member.run.store, member.to_tensors()) for key, member in batch.states().items() if key not in keys_before
    }
    ready.set_result(chunk)
    await asyncio.shield(inputs)
    await map_concurrently(lambda item: item[1][0].write_tensors(item[0], item[1][1]), new.items())
