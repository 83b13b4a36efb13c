"""The steps of a run as a row of chunks: while one is written to the store, the next is sampled."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from prefect_regional_diffusion.flows.common.pending_writes import Ahead
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.sample import Chunk, Inputs, Progress, Sampled, regional_steps, warm_up


async def sample(
    progress: Progress, chunk_steps: int | None, ahead: Ahead, inputs: Inputs, after_chunk: Callable[[], None]
) -> list[Chunk]:
    """All steps that are not done, first those of the base alone. The last states may still be being written."""
    composition = progress.run.composition
    warm, steps = composition.base_only_steps, composition.steps
    # Where a chapter ends, other jobs can go on.
    ends = {warm, steps, *(chapter.first for chapter in progress.run.chapters)}

    def work(first: int, last: int, sampled: Sampled) -> Coroutine[Any, Any, None]:
        return (warm_up if first <= warm else regional_steps)(progress, first, last, sampled, inputs)

    return await chunked(work, progress.done, sorted(ends), chunk_steps, ahead, after_chunk)


Work = Callable[[int, int, Sampled], Coroutine[Any, Any, None]]


async def chunked(
    work: Work,
    done: int,
    ends: Sequence[int],
    chunk_steps: int | None,
    ahead: Ahead,
    after_chunk: Callable[[], None] = lambda: None,
) -> list[Chunk]:
    """`work(first, last, sampled)` for all steps after `done`; no chunk goes over one of the `ends`.

    At most `chunks_ahead` chunks, or other work of `ahead`, wait to be written while the next chunk is sampled.
    """
    chunks = list[Chunk]()
    for end in ends:
        while done < end:
            last = min(done + (chunk_steps or _chosen_size(chunks)), end)
            chunks.append(await ahead.made(partial(work, done + 1, last)))
            after_chunk()
            await ahead.at_most(settings().chunks_ahead)
            done = last
    return chunks


def _chosen_size(chunks: list[Chunk]) -> int:
    """As many steps as take about `chunk_seconds`, judged by the last chunk; one step to begin with."""
    if not chunks:
        return 1
    last = chunks[-1]
    return max(1, round(settings().chunk_seconds * last.steps / max(last.seconds, 1e-3)))
