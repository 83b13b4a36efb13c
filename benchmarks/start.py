"""How soon a submitted run is at work: `python -m benchmarks.start [--json FILE]`.

One server of `make up` has two pools that draw: `gpu`, whose worker hands runs to a resident process, and `gpu-plain`,
whose worker starts an interpreter for each, as Prefect does. `regional submit` sends a small job to each in turn, ten
times, and waits for its end. Then the process of a resident run is killed -9 in the middle, and a run follows.

Seconds are from the run's making to its state Running, and to Completed, on the server's clock. Loads are those of the
denoiser that the runs' logs tell.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pools import Pool
from tests.machine import ENDS, Machine
from tests.processes import post, processes_of, regional

PLAIN_POOL = "gpu-plain"
POOLS = {"resident": "gpu", "plain": PLAIN_POOL}
SUBMISSIONS = 10
LOG_SECONDS = 10
"""In which the last lines of a run that has ended reach the server: they are sent together."""
LIMIT = 0.25
"""Of the plain worker's time to Running: a resident one's is at most this, in the median."""
JOB: dict[str, Any] = {"prompt": "a blue background", "steps": 4, "width": 128, "height": 128}
LONG: dict[str, Any] = {"prompt": "a blue background", "steps": 80, "width": 512, "height": 512}


def submit(machine: Machine, folder: Path, kind: str, name: str, job: dict[str, Any]) -> str:
    """`regional submit` to a pool; returns the run's id."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(job))
    command = regional("submit", file, "--pool", POOLS[kind], "--again")
    printed = subprocess.run(
        command, cwd=folder, env=machine.env | machine.client, check=True, capture_output=True, text=True
    ).stdout
    return printed.strip().rpartition("/")[2]


def ended(machine: Machine, run: str) -> dict[str, Any]:
    machine.wait_for("the end of a run", lambda: machine.run(run)["state_type"] in ENDS, seconds=600, pause=0.5)
    return machine.run(run)


def loads(machine: Machine, run: str) -> int:
    """How many denoisers a run has loaded."""
    lines = post(machine.api, "logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
    return sum(line["message"].startswith("loaded") and "denoiser" in line["message"] for line in lines)


def seconds(run: dict[str, Any], moment: str) -> float:
    made, then = (datetime.fromisoformat(run[name]) for name in ("created", moment))
    return (then - made).total_seconds()


def in_turn(machine: Machine, folder: Path) -> dict[str, Any]:
    """Ten submissions to each pool, one at a time."""
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in POOLS}
    for number in range(SUBMISSIONS):
        for kind, done in runs.items():
            # Seeds of its own: it would find the other pool's pictures in their store.
            seed = len(POOLS) * number + [*POOLS].index(kind)
            run = submit(machine, folder, kind, f"{kind}-{number}", JOB | {"seed": seed})
            done.append(ended(machine, run))
    time.sleep(LOG_SECONDS)
    return {
        kind: {
            "running": [round(seconds(run, "start_time"), 1) for run in done],
            "running_median": round(median(seconds(run, "start_time") for run in done), 2),
            "completed_median": round(median(seconds(run, "end_time") for run in done), 2),
            "loads": sum(loads(machine, run["id"]) for run in done),
            "completed": sum(run["state_type"] == "COMPLETED" for run in done),
        }
        for kind, done in runs.items()
    }


def kill(machine: Machine, folder: Path) -> dict[str, Any]:
    """Starts of a run whose process is killed while it samples, and of those before and after it."""
    before = submit(machine, folder, "resident", "before", JOB | {"seed": 100})
    ended(machine, before)
    killed = submit(machine, folder, "resident", "killed", LONG)
    machine.wait_for("its start", lambda: machine.run(killed)["state_type"] == "RUNNING")
    after = submit(machine, folder, "resident", "after", JOB | {"seed": 101})
    processes_of(killed)[0].kill()
    ends = {name: ended(machine, run) for name, run in {"before": before, "killed": killed, "after": after}.items()}
    return {name: {"starts": run["run_count"], "state": run["state_type"]} for name, run in ends.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # A store of its own: what an earlier measurement has drawn would be found, and not drawn.
        machine = Machine(folder, REGIONAL_STORE=str(folder / "store"))
        stack.callback(machine.up, "--down")
        machine.up()
        stack.enter_context(Pool(machine, PLAIN_POOL, "--plain")).start_worker()
        figures = in_turn(machine, folder)
        figures["ratio"] = round(figures["resident"]["running_median"] / figures["plain"]["running_median"], 3)
        print(json.dumps(figures, indent=2), flush=True)
        figures["killed"] = kill(machine, folder)
    print(json.dumps(figures["killed"], indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if _passes(figures) else 1


def _passes(figures: dict[str, Any]) -> bool:
    starts = {name: run["starts"] for name, run in figures["killed"].items()}
    all_drawn = all(figures[kind]["completed"] == SUBMISSIONS for kind in POOLS)
    again_alone = starts == {"before": 1, "killed": 2, "after": 1}
    return all_drawn and again_alone and figures["ratio"] <= LIMIT and figures["resident"]["loads"] == 1


if __name__ == "__main__":
    sys.exit(main())
