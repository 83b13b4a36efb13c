"""The steps of a run as a row of chunks: while one is written to the store, the next is sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tasks.sampling import Chunk, Progress, Sampled, regional_steps, warm_up
from tasks.settings import settings
from tasks.showing import Shown


async def sample(progress: Progress, chunk_steps: int | None) -> list[Chunk]:
    """All steps that are not done, first those of the base alone; returns when the last state is durable."""
    composition, shown = progress.run.composition, Shown(progress)
    warm, steps = composition.base_only_steps, composition.steps

    def work(first: int, last: int, sampled: Sampled) -> Coroutine[Any, Any, None]:
        sampled.add_done_callback(lambda _: shown.renew())
        return (warm_up if first <= warm else regional_steps)(progress, first, last, sampled)

    chunks = await chunked(work, progress.done, [warm, steps], chunk_steps)
    await shown.end()
    return chunks


Work = Callable[[int, int, Sampled], Coroutine[Any, Any, None]]


async def chunked(work: Work, done: int, ends: Sequence[int], chunk_steps: int | None) -> list[Chunk]:
    """`work(first, last, sampled)` for all steps after `done`; no chunk goes over one of the `ends`.

    At most `chunks_ahead` states wait to be written while the next chunk is sampled.
    """
    chunks, writing = list[Chunk](), set[asyncio.Task[None]]()
    try:
        for end in ends:
            while done < end:
                last = min(done + (chunk_steps or _chosen_size(chunks)), end)
                sampled: Sampled = asyncio.get_running_loop().create_future()
                chunk = asyncio.create_task(work(done + 1, last, sampled))
                # A chunk that fails before it is sampled would never set it.
                await asyncio.wait({chunk, sampled}, return_when=asyncio.FIRST_COMPLETED)
                writing.add(chunk)
                if sampled.done():
                    chunks.append(sampled.result())
                writing = await _written(writing, settings().chunks_ahead)
                done = last
    finally:
        # What was sampled is not lost, also when the run is told to stop.
        await asyncio.gather(*writing, return_exceptions=True)
    await _written(writing, 0)
    return chunks


async def _written(writing: set[asyncio.Task[None]], most: int) -> set[asyncio.Task[None]]:
    """Those still being written, once they are at most so many. Raises what went wrong in one."""
    while True:
        finished = {task for task in writing if task.done()}
        for task in finished:
            task.result()
        writing = writing - finished
        if len(writing) <= most:
            return writing
        await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)


def _chosen_size(chunks: list[Chunk]) -> int:
    """As many steps as take about `chunk_seconds`, judged by the last chunk; one step to begin with."""
    if not chunks:
        return 1
    last = chunks[-1]
    return max(1, round(settings().chunk_seconds * last.steps / max(last.seconds, 1e-3)))
