"""The same jobs on real workers: a server of `make up`, and two pools that are asked for them side by side.

The workers of one pool take runs as ours do, near to the models that they hold; those of the other take them in the
order in which they were submitted. Networks and loads are stand-ins that sleep (`benchmarks.standing_in`), so that one
machine carries several workers; server, database, workers, resident processes and flows are the real ones.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple, Self

from safetensors.torch import load_file, save_file

from benchmarks.fleet.simulation import Fleet, Job, Policy, Result, simulate
from benchmarks.pools import Pool
from benchmarks.standing_in import FORWARD_SECONDS, LOAD_SECONDS
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from tests.machine import Machine
from tests.processes import ROOT, ask, post, processes_of

POOLS: dict[Policy, str] = {"first come": "first-come", "affinity": "affinity"}
_MOST_WARM_UPS = 6
ONE_MODEL_BYTES = 25_000_000
"""What a worker may hold: one embedded model (15 MB are its denoiser, in float32), and not the denoisers of two."""


class Drawn(NamedTuple):
    """A run, in seconds since 1970 and seconds."""

    submitted: float
    claimed: float
    """When a worker took it at last."""
    first_step: float
    loading: float
    drawing: float
    ended: float
    starts: int


class Comparison(NamedTuple):
    """Jobs as they were drawn, and as a simulation with the seconds that were measured has them drawn."""

    measured: Result
    simulated: Result
    start_seconds: float
    """From a worker's choice to a run's first step, but for loading; the median."""
    end_seconds: float
    """From the last step to the run's end."""
    started_again: int
    """Runs that did not end in the process that they began in."""

    @classmethod
    def of(cls, policy: Policy, drawn: Sequence[Drawn], jobs: Sequence[Job], workers: int, load_seconds: float) -> Self:
        undisturbed = [run for run in drawn if run.starts == 1]
        start_seconds = median(run.first_step - run.claimed - run.loading for run in undisturbed)
        end_seconds = median(run.ended - run.first_step - run.drawing for run in undisturbed)
        fleet = Fleet(workers, dict.fromkeys({job.model for job in jobs}, load_seconds), start_seconds=start_seconds)
        as_drawn = [job._replace(seconds=job.seconds + end_seconds) for job in jobs]
        return cls(
            measured=_result(drawn, workers),
            simulated=simulate(fleet, as_drawn, policy),
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            started_again=len(drawn) - len(undisturbed),
        )


def _result(drawn: Sequence[Drawn], workers: int) -> Result:
    span = max(run.ended for run in drawn) - min(run.submitted for run in drawn)
    drawing, loading = sum(run.drawing for run in drawn), sum(run.loading for run in drawn)
    again = sum(run.starts - 1 for run in drawn)
    return Result(
        waits=tuple(run.first_step - run.submitted for run in drawn),
        turnarounds=tuple(run.ended - run.submitted for run in drawn),
        loads=sum(run.loading > 0 for run in drawn),
        deaths=again,
        span=span,
        drawing=drawing,
        idle_share=1 - (drawing + loading) / (workers * span),
    )


def on_workers(jobs: Sequence[Job], workers: int, load_seconds: float) -> dict[Policy, Comparison]:
    """Jobs, in the order of arrival, on so many workers a pool.

    A third of them submitted, a process that draws is killed -9 in each pool; two thirds, a worker is told to end and
    another one starts, as when a spot machine is taken away.

    A run that is started again counts with its last start's loads and seconds, and waits until its first step.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _make_models(folder / "models", {job.model for job in jobs})
        variables = {
            "PYTHONPATH": f"{ROOT / 'benchmarks' / 'stand_ins'}{os.pathsep}{ROOT}",
            "REGIONAL_MODEL_FOLDERS": str(folder / "models"),
            "REGIONAL_MAX_LOADED_BYTES": str(ONE_MODEL_BYTES),
            LOAD_SECONDS: str(load_seconds),
        }
        machine = Machine(folder, **variables)
        stack.callback(machine.up, "--down")
        machine.up()
        options: dict[Policy, str] = {"first come": "0", "affinity": str(load_seconds)}
        pools: dict[Policy, Pool] = {
            policy: stack.enter_context(Pool(machine, name, "--load-seconds", options[policy]))
            for policy, name in POOLS.items()
        }
        for pool in pools.values():
            for _ in range(workers):
                pool.start_worker()
            _wait_for_workers(machine, pool.name, workers)
        _warm_up(machine, pools, workers, sorted({job.model for job in jobs}))
        runs = _submit(machine, pools, jobs)
        measured: dict[Policy, list[Drawn]] = {
            policy: [_drawn(machine, run, load_seconds) for run in of_pool] for policy, of_pool in runs.items()
        }
    return {policy: Comparison.of(policy, drawn, jobs, workers, load_seconds) for policy, drawn in measured.items()}


def _make_models(folder: Path, names: set[str]) -> None:
    """Copies of the embedded model, each with files of its own: what is loaded is known by its bytes."""
    for name in names:
        shutil.copytree(EMBEDDED, folder / name, copy_function=shutil.copyfile)
        for weights in (folder / name).rglob("*.safetensors"):
            save_file(load_file(weights), weights, metadata={"name": name})


def _wait_for_workers(machine: Machine, pool: str, number: int) -> None:
    online = {"workers": {"status": {"any_": ["ONLINE"]}}}
    path = f"work_pools/{pool}/workers/filter"
    machine.wait_for(f"{number} workers", lambda: len(post(machine.api, path, online)) == number)


def _warm_up(machine: Machine, pools: dict[Policy, Pool], workers: int, models: Sequence[str]) -> None:
    """Have something drawn by each worker: a new one imports the libraries first."""
    deployments: dict[Policy, str] = {policy: machine.deployment(pool.name)["id"] for policy, pool in pools.items()}
    for number in range(_MOST_WARM_UPS):
        if all(len(pool.waiting) == workers for pool in pools.values()):
            return
        runs = [
            _create(machine, pools[policy], deployment, f"warm-{number}-{place}", Job(0.0, "", model, 0.0))
            for policy, deployment in deployments.items()
            for place, model in enumerate(models[place % len(models)] for place in range(workers))
        ]
        for run in runs:
            machine.completed(run, seconds=600, pause=1)
        time.sleep(2)
    raise AssertionError("a worker draws nothing, or keeps no process")


def _submit(machine: Machine, pools: dict[Policy, Pool], jobs: Sequence[Job]) -> dict[Policy, list[str]]:
    """Submit each job to each pool when it arrives, and wait for the end of all; returns the runs' ids."""
    deployments: dict[Policy, str] = {policy: machine.deployment(pool.name)["id"] for policy, pool in pools.items()}
    runs: dict[Policy, list[str]] = {policy: [] for policy in pools}
    start = time.monotonic() - jobs[0].arrival
    for number, job in enumerate(jobs):
        time.sleep(max(0.0, start + job.arrival - time.monotonic()))
        for policy, deployment in deployments.items():
            runs[policy].append(_create(machine, pools[policy], deployment, str(number), job))
            if number == len(jobs) // 3:
                _kill_one(machine, pools[policy])
            elif number == 2 * len(jobs) // 3:
                pools[policy].workers[0].terminate()
                pools[policy].start_worker()
    for run in [run for of_pool in runs.values() for run in of_pool]:
        machine.completed(run, seconds=1800, pause=1)
    return runs


def _create(machine: Machine, pool: Pool, deployment: str, name: str, job: Job) -> str:
    """Ask for a job's run in a pool; returns its id."""
    steps = max(1, round(job.seconds / FORWARD_SECONDS))
    drawing = {"prompt": name, "model": job.model, "steps": steps, "width": 64, "height": 64}
    # Stores of their own: what one pool has drawn must not be found by the other.
    places = {"store": str(machine.store / pool.name), "out": str(machine.out)}
    order = {
        "parameters": {"job": drawing, "name": f"{pool.name}-{name}", **places},
        "tags": [f"owner:{job.owner}"] if job.owner else [],
    }
    return post(machine.api, f"deployments/{deployment}/create_flow_run", order)["id"]


def _kill_one(machine: Machine, pool: Pool) -> None:
    """Kill -9 the process of a run that draws; waits for one."""

    def killed() -> bool:
        at_work = {
            "work_pools": {"name": {"any_": [pool.name]}},
            "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
        }
        processes = [
            process for run in post(machine.api, "flow_runs/filter", at_work) for process in processes_of(run["id"])
        ]
        for process in processes[:1]:
            process.kill()
        return bool(processes)

    machine.wait_for("a run that draws", killed)


def _drawn(machine: Machine, run_id: str, load_seconds: float) -> Drawn:
    """What became of a run, by the server's clock and the record of its picture."""
    run = machine.run(run_id)
    states = ask(f"{machine.api}/flow_run_states/?flow_run_id={run_id}", method="GET")
    (claimed, *_), (started, *_) = (
        [_moment(state["timestamp"]) for state in states if state["type"] == kind] for kind in ("PENDING", "RUNNING")
    )
    (file,) = machine.out.glob(f"{run['parameters']['name']}-*.json")
    laps: dict[str, float] = json.loads(file.read_text())["seconds"]
    stages = list(laps)
    loading = laps["load model"] if laps["load model"] > load_seconds / 2 else 0.0
    return Drawn(
        submitted=_moment(run["created"]),
        claimed=claimed,
        first_step=started + sum(laps[name] for name in stages[: stages.index("sample")]),
        loading=loading,
        drawing=laps["sample"],
        ended=_moment(run["end_time"]),
        starts=run["run_count"],
    )


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
