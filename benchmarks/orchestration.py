"""What server, worker and store cost: `python -m benchmarks.orchestration [--json FILE]`.

With a stand-in network that takes 0.2 s a forward and no processor, as an operator has it by default: the server of
`make up` with PostgreSQL where that is installed, resident workers, latents in S3 (rclone's server).

- one job of 20 steps and 4 regions in a process that has drawn before, against the bare loop of the core: the stage of
  sampling, the whole run, and the time from its submission to its start and to its end
- bytes and seconds of a checkpoint
- a grid of 256 cells on one worker and on eight: seconds, memory of the server, API calls per cell
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from safetensors.torch import load

from benchmarks.pools import waiting_processes
from benchmarks.rclone import s3_server
from benchmarks.standing_in import SleepingNetwork
from benchmarks.whole_model import run_on
from prefect_regional_diffusion.deployments import background_processes as processes
from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import EvaluationContext
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.tensors.specs import specs_of
from prefect_regional_diffusion.tasks.storage import keys
from prefect_regional_diffusion.tasks.storage.store import Store
from tests import s3
from tests.machine import ASKED_HERE, Machine
from tests.processes import ROOT, post

BUCKET = "latents"
QUARTERS = [(x, y) for y in (0, 0.5) for x in (0, 0.5)]
JOB: dict[str, Any] = {
    "prompt": "base",
    "steps": 20,
    "regions": [
        {"prompt": f"region {i}", "mask": {"x": x, "y": y, "width": 0.5, "height": 0.5}, "feather": 16}
        for i, (x, y) in enumerate(QUARTERS)
    ],
}
CELL: dict[str, Any] = {"prompt": "cell", "steps": 20, "width": 64, "height": 64, "sampler": "euler"}
COLUMNS = 16
ROWS_PER_FORWARD = 8
STAND_INS = ROOT / "benchmarks" / "stand_ins"
_MOST_WARM_UPS = 8
MOST_RUN_RATIO, LEAST_EFFICIENCY = 1.08, 0.75
"""Of a run's seconds to the bare loop's; of the speed of all workers to as many times one's."""


def bare_seconds(steps: int) -> float:
    """The core's loop on the same job, in this process."""
    job = parse_job(JOB | {"steps": steps})
    run = run_on(open_folder("embedded"), job)
    context = EvaluationContext({job.model: SleepingNetwork()}, dict.fromkeys(run.prompts, Conditioning({})))
    start = time.perf_counter()
    for _ in iterate(run, run.initial_state(), context):
        pass
    return time.perf_counter() - start


def one_job(machine: Machine, number: int, steps: int) -> dict[str, float]:
    """Seconds of a run: of its stages, of all of it, and from its submission to its start and to its end."""
    store, name = f"s3://{BUCKET}/job-{number}", f"job-{number}"
    job = JOB | {"steps": steps}
    run_id = machine.submit("render/render", job=job, store=store, out=str(machine.out), name=name)
    flow_run = machine.completed(run_id)
    (file,) = machine.out.glob(f"{name}-*.json")
    laps = json.loads(file.read_text())["seconds"]
    submitted, started, ended = (_moment(flow_run[name]) for name in ("created", "start_time", "end_time"))
    return {
        **laps,
        "run": ended - started,
        "to_running": started - submitted,
        "to_completed": ended - submitted,
    }


def _moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def checkpoints(endpoint: str) -> dict[str, float]:
    """Bytes of a state, and seconds to write it to S3 and to read it back."""
    sizes = s3.objects(endpoint, BUCKET, "job-0/latents/")
    store = Store(f"s3://{BUCKET}/again")
    key = max(sizes)
    tensors = load(s3.client(endpoint).get_object(Bucket=BUCKET, Key=key)["Body"].read())
    specs = specs_of(tensors)
    writes, reads = list[float](), list[float]()
    for number in range(20):
        start = time.perf_counter()
        store.write_tensors(keys.masks(f"{number:064}"), tensors)
        write_end = time.perf_counter()
        store.read_tensors(keys.masks(f"{number:064}"), specs)
        writes.append(write_end - start)
        reads.append(time.perf_counter() - write_end)
    return {"bytes": sizes[key], "write_seconds": median(writes), "read_seconds": median(reads)}


def grid(machine: Machine, name: str, seed: int, workers: int, cells: int) -> dict[str, float]:
    """Seconds of a grid from its first shard's start to its last one's end, and what it cost the server.

    No grid's name may be the beginning of another one's.
    """
    server = processes.running(machine.folder, "server")
    assert server is not None
    memory_before, calls_before = _memory(server), _calls(machine)
    job = {"job": CELL | {"seed": seed}, "rows": cells // COLUMNS, "columns": COLUMNS, "mode": "Fork then Sample"}
    parameters = {"job": job, "parallel_shards": workers, "out": str(machine.out)}
    run_id = machine.submit("grid/grid", **parameters, store=f"s3://{BUCKET}/{name}", name=name)
    machine.completed(run_id, seconds=3600)
    shards = post(machine.api, "flow_runs/filter", {"deployments": {"name": {"any_": ["shard"]}}, "limit": 200})
    grid_shards = [run for run in shards if name in run["name"]]
    (sheet,) = machine.out.glob(f"{name}-*/sheet.json")
    assert len(json.loads(sheet.read_text())["images"]) == cells
    return {
        "shards": len(grid_shards),
        "seconds": max(_moment(run["end_time"]) for run in grid_shards)
        - min(_moment(run["start_time"]) for run in grid_shards),
        "calls_per_cell": (_calls(machine) - calls_before) / cells,
        "server_mb_before": memory_before,
        "server_mb_after": _memory(server),
    }


def _memory(server: psutil.Process) -> float:
    return sum(process.memory_info().rss for process in [server, *server.children(recursive=True)]) / 1e6


def _calls(machine: Machine) -> int:
    """Requests that the server answered, but for workers that ask for work and for this benchmark's own."""
    log = (machine.folder / "server.log").read_text()
    paths = re.findall(r'"(?:GET|POST|PATCH|PUT|DELETE) (/api/\S+) HTTP', log)
    excluded = ("get_scheduled_flow_runs", "/workers/", ASKED_HERE)
    return sum(not any(part in path for part in excluded) for path in paths)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--runs", type=int, default=5, help="of the one job in a process that has drawn [5]")
    parser.add_argument("--steps", type=int, default=20, help="of the one job [20]")
    parser.add_argument("--no-grid", action="store_true", help="leave the grid out: it takes a quarter of an hour")
    parser.add_argument("--cells", type=int, default=256, help=f"of the grid, a multiple of {COLUMNS} [256]")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8], help="draw the grid, in turn [1 8]")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with s3_server(folder, BUCKET) as port:
            figures = _measure(folder, f"http://127.0.0.1:{port}", options)
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    efficiency = figures.get("efficiency", LEAST_EFFICIENCY)
    return 0 if figures["job"]["run_ratio"] <= MOST_RUN_RATIO and efficiency >= LEAST_EFFICIENCY else 1


def _measure(folder: Path, endpoint: str, options: argparse.Namespace) -> dict[str, Any]:
    variables = {
        "REGIONAL_STORE": f"s3://{BUCKET}",
        "REGIONAL_S3_ENDPOINT": endpoint,
        "REGIONAL_S3_KEY": s3.KEY,
        "REGIONAL_S3_SECRET": s3.SECRET,
        "REGIONAL_MAX_FORWARD_ROWS": str(ROWS_PER_FORWARD),
        # The log of requests is what calls are counted in.
        "PREFECT_SERVER_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_SERVER_LEVEL": "INFO",
        "PYTHONPATH": f"{STAND_INS}{os.pathsep}{ROOT}",
    }
    machine = Machine(folder, **variables)
    more_workers: list[subprocess.Popen[bytes]] = []
    try:
        machine.up()
        figures: dict[str, Any] = {"database": "PostgreSQL" if machine.has_postgres else "SQLite"}
        figures["job"] = _job_figures(machine, options.runs, options.steps)
        os.environ.update(variables)
        figures["checkpoint"] = checkpoints(endpoint)
        if options.no_grid:
            return figures
        seconds = dict[int, float]()
        for workers in options.workers:
            while len(more_workers) + 1 < workers:
                more_workers.append(_one_more_worker(machine, len(more_workers) + 2))
            _wait_for_workers(machine, workers)
            _warm_up(machine, workers, more_workers[: workers - 1])
            figures[f"workers: {workers}"] = measured = grid(
                machine, f"grid-{workers}", workers, workers, options.cells
            )
            seconds[workers] = measured["seconds"]
        few, many = min(seconds), max(seconds)
        figures["speed_up"] = seconds[few] / seconds[many]
        figures["efficiency"] = figures["speed_up"] * few / many
        return figures
    finally:
        for worker in more_workers:
            worker.terminate()
        for worker in more_workers:
            worker.wait()
        machine.up("--down")


def _job_figures(machine: Machine, number: int, steps: int) -> dict[str, Any]:
    """Medians over runs in a process that has drawn: the first run is its own, and what it takes is told beside."""
    bare = median(bare_seconds(steps) for _ in range(3))
    first = one_job(machine, 0, steps)
    machine.wait_for("a process that waits for the next run", lambda: _waiting(machine))
    process = _waiting(machine)
    runs = [one_job(machine, run, steps) for run in range(1, number + 1)]
    machine.wait_for("the same process", lambda: _waiting(machine) == process)
    medians = {name: median(run[name] for run in runs) for name in first}
    return {
        "seconds": medians,
        "first_seconds": first,
        "bare_seconds": bare,
        "sampling_ratio": medians["sample"] / bare,
        "run_ratio": medians["run"] / bare,
    }


def _waiting(machine: Machine, more_workers: Sequence[subprocess.Popen[bytes]] = ()) -> set[int]:
    """Processes that have drawn, and have their models in memory for the next run."""
    first = processes.running(machine.folder, "worker-gpu")
    assert first is not None
    return waiting_processes([first, *(psutil.Process(worker.pid) for worker in more_workers)])


def _warm_up(machine: Machine, workers: int, more_workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Have small grids drawn until each worker has a process that waits: a new one imports the libraries first."""
    for number in range(_MOST_WARM_UPS):
        if len(_waiting(machine, more_workers)) == workers:
            return
        grid(machine, f"warm-{workers}-{number}", 1000 * workers + number, workers, COLUMNS)
        time.sleep(1)
    assert len(_waiting(machine, more_workers)) == workers, "a worker draws nothing, or keeps no process"


def _wait_for_workers(machine: Machine, number: int) -> None:
    """Until so many workers of the pool `gpu` are there, which then takes as many runs."""
    machine.patch("work_pools/gpu", {"concurrency_limit": number})
    online = {"workers": {"status": {"any_": ["ONLINE"]}}}
    path = "work_pools/gpu/workers/filter"
    machine.wait_for(f"{number} workers", lambda: len(post(machine.api, path, online)) == number)


def _one_more_worker(machine: Machine, number: int) -> subprocess.Popen[bytes]:
    client_env = machine.client | {"PREFECT_HOME": str(machine.folder / f"prefect{number}")}
    env = machine.env | client_env | {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    worker = [sys.executable, "-m", "prefect_regional_diffusion.deployments.worker", "gpu"]
    with (machine.folder / f"worker{number}.log").open("wb") as log:
        return subprocess.Popen(
            [*worker, "--name", f"worker {number}", "--limit", "1"], cwd=ROOT, env=env, stdout=log, stderr=log
        )


if __name__ == "__main__":
    sys.exit(main())
