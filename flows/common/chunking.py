"""The steps of a batch of runs as a row of chunks: while one is written to the store, the next is sampled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prefect_regional_diffusion.flows.common.pending_writes import PendingWrites
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.run_batch import Chunk, RunBatch
from prefect_regional_diffusion.tasks.sample import Inputs, base_only_steps, regional_steps

STATES_PER_CHUNK = 4
"""A batch with more states than these is saved less often, in proportion."""


async def sample_in_chunks(
    batch: RunBatch,
    checkpoint_steps: int | None,
    inputs: Inputs,
    writes: PendingWrites,
    after_chunk: Callable[[], None],
) -> list[Chunk]:
    """All steps that are not done, first those of the base alone. The last states may still be being written.

    No chunk goes over a step after which a state is kept. At most `max_pending_writes` chunks, or other pending
    writes, wait while the next chunk is sampled.
    """
    chunks, base_only = list[Chunk](), batch.base_only_steps
    for end in batch.ends():
        while batch.done < end:
            first = batch.done + 1
            last = min(batch.done + (checkpoint_steps or chosen_size(chunks, len(batch.states()))), end)
            steps = base_only_steps if last <= base_only else regional_steps
            chunks.append(await writes.first_result(partial(steps, batch, first, last, inputs)))
            after_chunk()
            await writes.drain_to(settings().max_pending_writes)
    return chunks


def chosen_size(chunks: list[Chunk], states: int) -> int:
    """As many steps as take about `checkpoint_seconds`, judged by the last chunk; one step to begin with.

    Each state is an object that is written, and removed later. So that these requests do not grow with the number of
    runs, the interval does: it is `checkpoint_seconds` for STATES_PER_CHUNK states, twice as long for twice as many.
    """
    if not chunks:
        return 1
    last, seconds = chunks[-1], settings().checkpoint_seconds * max(1.0, states / STATES_PER_CHUNK)
    return max(1, round(seconds * last.steps / max(last.seconds, 1e-3)))
