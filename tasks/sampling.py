"""Tasks: the steps of a run, a chunk at a time; after each chunk its state is in the store."""

from __future__ import annotations

import time
from typing import NamedTuple

from prefect import task

from sampling_core.evaluate import Count
from sampling_core.plan import first_state
from sampling_core.sampler import State, iterate
from sampling_core.state import from_tensors, to_tensors
from tasks.loading import loaded
from tasks.progress import report_step
from tasks.run import Run


class Chunk(NamedTuple):
    """A finished chunk of steps and what it cost."""

    steps: int
    cost: Count
    seconds: float


def newest_step(run: Run) -> int:
    """The last step whose state is in the store whole; 0 if there is none."""
    for name in reversed(run.store.names(run.latents)):
        if name.isdecimal() and int(name) <= run.plan.steps and _restore(run, int(name)) is not None:
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
    model = loaded(run.folder, run.model_fingerprint)
    state = _restore(run, first - 1)
    if state is None:
        raise RuntimeError(f"the state after step {first - 1} is not in {run.store_url}; start the run again")
    total = Count()
    for reached, count in iterate(run.plan, state, model.network, run.embeddings(), until=last):
        state, total = reached, total.plus(count)
        report_step(state.step, run.plan.steps)
    run.store.write_tensors(_key(run, state.step), to_tensors(state))
    return Chunk(last - first + 1, total, time.monotonic() - started)


def final_state(run: Run) -> State:
    """The state after the last step. Raises RuntimeError if the run is not finished."""
    state = _restore(run, run.plan.steps)
    if state is None:
        raise RuntimeError(f"the finished latent is not in {run.store_url}; start the run again")
    return state


def _restore(run: Run, step: int) -> State | None:
    if step == 0:
        folder = run.folder
        return first_state(run.job, run.plan, folder.levels, folder.latent_channels, folder.cell)
    tensors = run.store.read_tensors(_key(run, step))
    return None if tensors is None else from_tensors(run.plan, tensors)


def _key(run: Run, step: int) -> str:
    return f"{run.latents}/{step:05d}"
