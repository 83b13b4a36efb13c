"""Flow `shard`: several jobs in one process, with one loaded model and in the same forwards."""

# No `from __future__ import annotations`: see render.py.
import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from prefect_regional_diffusion.flows.common.chunking import chunked
from prefect_regional_diffusion.flows.common.pending_writes import Ahead
from prefect_regional_diffusion.flows.common.run_names import named_after
from prefect_regional_diffusion.flows.common.spent_time import Clock
from prefect_regional_diffusion.flows.render import ChunkSteps, Name
from prefect_regional_diffusion.sampling_core.engine.batching import Count
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.sharding import MOST_PER_SHARD
from prefect_regional_diffusion.tasks.check_jobs import prepare_all
from prefect_regional_diffusion.tasks.encode import encode_prompts, encode_start
from prefect_regional_diffusion.tasks.inputs.path_policy import store_place
from prefect_regional_diffusion.tasks.load_model import load_model
from prefect_regional_diffusion.tasks.machine.settings import Keep, settings
from prefect_regional_diffusion.tasks.runtime.render_context import Run
from prefect_regional_diffusion.tasks.sample import Sampled, counted, newest
from prefect_regional_diffusion.tasks.sample_batch import Company, rounds
from prefect_regional_diffusion.tasks.save_images import is_drawn, keep_pictures
from prefect_regional_diffusion.tasks.storage.parallel_io import at_once
from prefect_regional_diffusion.tasks.storage.retention import Known, begin, finish, known_of
from prefect_regional_diffusion.tasks.storage.store import Store
from prefect_regional_diffusion.tasks.ui.artifacts import Shown
from prefect_regional_diffusion.tasks.ui.step_listener import report_step

_PICTURES = 8
"""Decoded in one task: many tasks at once are more than a server on SQLite can write down."""


@flow(name="shard", flow_run_name=named_after("shard"), persist_result=False)
async def shard(
    jobs: Annotated[list[NamedJob], Field(min_length=1, max_length=MOST_PER_SHARD)],
    chunk_steps: ChunkSteps = None,
    store: str | None = None,
    keep: Keep | None = None,
    name: Name = "",
) -> dict[str, Any]:
    """Draw some cells of a grid or jobs of a batch. Started by the flows `grid` and `batch`, which merge the pictures.

    Args:
        jobs: What to draw, each under a name for people.
        chunk_steps: States are saved after so many steps. Empty: about every second.
        store: Where latents and pictures are kept. Empty: where the worker keeps them.
        keep: Which states stay in the store. Empty: as the worker is set up. Those at forks stay in any case: other
            shards go on from them. The flow that started the shards removes them, when all are drawn.
        name: What the run is called, for people.

    Returns:
        How many jobs were `drawn` and how many `found` finished, what it cost, and the `seconds` by stage.
    """
    total, store_url, clock = Count(), store_place(store), Clock()
    await asyncio.to_thread(Store(store_url).check, patient=True)
    async with Ahead() as ahead:
        runs = await ahead.made(partial(prepare_all, jobs, store_url))
        clock.lap("build masks")
        drawn = dict(zip(runs, await at_once(is_drawn, runs.values()), strict=True))
        missing = {name: run for name, run in runs.items() if not drawn[name]}
        to_finish = await _left_open([run for name, run in runs.items() if drawn[name]])
        # Models that differ do not fit on a card at once: those with the same ones are drawn together.
        for _, group in groupby(sorted(missing.items(), key=_models), key=_models):
            count, begun = await _draw(dict(group), chunk_steps, ahead, clock)
            total, to_finish = total.plus(count), to_finish | begun
        # Only now: until all are drawn, one may go on from a state of another.
        await finish(to_finish, keep or settings().keep, "forks")
    return {
        "drawn": len(missing),
        "found": len(runs) - len(missing),
        "evaluations": total.evaluations,
        "forwards": total.forwards,
        "seconds": clock.laps,
    }


def _models(item: tuple[str, Run]) -> tuple[str, ...]:
    return item[1].job.models


async def _left_open(drawn: Sequence[Run]) -> dict[Run, Known]:
    """Those runs whose pictures are there, but whose process was killed before it could say that they are finished."""
    known = zip(drawn, await at_once(known_of, drawn), strict=True)
    return {run: entry for run, entry in known if entry is not None and entry.finished is None}


async def _draw(
    runs: dict[str, Run], chunk_steps: int | None, ahead: Ahead, clock: Clock
) -> tuple[Count, dict[Run, Known]]:
    these = list(runs.values())
    starts = [run for run in these if run.job.start_image is not None]
    if starts:
        await ahead.made(partial(encode_start, starts))
    await ahead.made(partial(encode_prompts, these))
    company, inputs = Company(await asyncio.gather(*map(newest, these))), ahead.so_far()
    beginning = ahead.begin(at_once(lambda item: begin(item[1], item[0]), runs.items()))
    report_step(*counted(company.members))
    clock.lap("encode prompts")
    if company.rounds:
        for model in these[0].job.models:
            await load_model(model, these[0].model_keys)
    clock.lap("load model")
    shown = Shown(company.members)

    def work(first: int, last: int, sampled: Sampled) -> Any:
        return rounds(company, first, last, sampled, inputs)

    chunks = await chunked(work, 0, company.ends(), chunk_steps, ahead, shown.renew)
    shown_to_the_end = asyncio.create_task(shown.end())
    clock.lap("sample")
    # A picture's record names its last state.
    await ahead.at_most(0)
    for first in range(0, len(these), _PICTURES):
        some = company.members[first : first + _PICTURES]
        await ahead.made(partial(keep_pictures, some, first + 1, first + len(some)))
        await ahead.at_most(settings().chunks_ahead)
    await ahead.at_most(0)
    await shown_to_the_end
    clock.lap("write")
    count = Count(sum(c.cost.evaluations for c in chunks), sum(c.cost.forwards for c in chunks))
    return count, dict(zip(these, beginning.result(), strict=True))
