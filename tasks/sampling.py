"""Tasks: the steps of a run, a chunk at a time; after each chunk its state is in the store."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from prefect import task

from sampling_core._types import Latent
from sampling_core.evaluate import Count, Networks
from tasks.progress import report_step
from tasks.run import Run
from tasks.settings import settings


class Chunk(NamedTuple):
    """A finished chunk of steps and what it cost."""

    steps: int
    cost: Count
    seconds: float


def newest_step(run: Run) -> int:
    """The last step whose state is in the store whole; 0 if there is none."""
    for name in reversed(run.store.names(run.latents)):
        if name.isdecimal() and int(name) <= run.composition.steps and _restore(run, int(name)) is not None:
            return int(name)
    return 0


@task(task_run_name="base-only steps {first}-{last}", persist_result=False)
def warm_up(run: Run, first: int, last: int) -> Chunk:
    """Steps in which the base has the whole canvas (counted from 1, both included)."""
    return _advance(run, first, last)


@task(task_run_name="regional steps {first}-{last}", persist_result=False)
def regional_steps(run: Run, first: int, last: int) -> Chunk:
    """Steps in which the base and all regions move together (counted from 1, both included)."""
    return _advance(run, first, last)


def _advance(run: Run, first: int, last: int) -> Chunk:
    started = time.monotonic()
    composition = run.composition
    start = reached = _restore(run, first - 1)
    if start is None:
        raise RuntimeError(f"the state after step {first - 1} is not in {run.store_url}; start the run again")
    using, total = _using(run), Count()
    for reached, count in composition.iterate(start, using, until=last):
        total = total.plus(count)
        report_step(composition.done(reached), composition.steps)
    run.store.write_tensors(_key(run, last), composition.to_tensors(reached))
    return Chunk(last - first + 1, total, time.monotonic() - started)


def _using(run: Run) -> Networks:
    networks = {name: run.model(name).network for name in run.job.models}
    return Networks(networks, run.embeddings(), settings().max_rows)


def finished_latents(run: Run) -> Latent:
    """The latents [b, c, h, w] after the last step. Raises RuntimeError if the run is not finished."""
    reached = _restore(run, run.composition.steps)
    if reached is None:
        raise RuntimeError(f"the finished latent is not in {run.store_url}; start the run again")
    return run.composition.pictures(reached)


def _restore(run: Run, step: int) -> Any:
    """The state after a step; None if it is not in the store."""
    if step == 0:
        return run.composition.begin()
    tensors = run.store.read_tensors(_key(run, step))
    return None if tensors is None else run.composition.from_tensors(tensors)


def _key(run: Run, step: int) -> str:
    return f"{run.latents}/{step:05d}"
