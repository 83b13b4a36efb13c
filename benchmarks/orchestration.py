"""What server, worker and store cost: `python -m benchmarks.orchestration [--json FILE]`.

With a stand-in network that takes 0.2 s a forward and no processor:

- one job of 20 steps and 4 regions through server, worker and S3 (over HTTP), against the bare loop of the core: the
  stage of sampling, and the whole run once its process is up (imports, the S3 client and the model left out)
- bytes and seconds of a checkpoint
- a grid of 16 x 16 cells on one worker and on two: seconds, memory of the server, API calls per cell
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
GRID: dict[str, Any] = {"job": CELL, "rows": 16, "columns": 16, "mode": "Fork then Sample"}
CELLS = 256
ROWS_PER_FORWARD = 8


def bare_seconds() -> float:
    """The core's loop on the same job, in this process."""
    job = parse_job(JOB)
    run = run_on(open_folder("embedded"), job)
    context = EvaluationContext({job.model: SleepingNetwork()}, dict.fromkeys(run.prompts, Conditioning({})))
    start = time.perf_counter()
    for _ in iterate(run, run.initial_state(), context):
        pass
    return time.perf_counter() - start


def deploy_stand_ins(machine: Machine) -> None:
    """The deployments `render` and `shard` with the stand-in network, in the place of the real ones."""
    env = machine.env | machine.client | {"PREFECT_HOME": str(machine.folder / "prefect")}
    for flow in ("render", "shard"):
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", f"benchmarks/standing_in.py:{flow}"]
        command += ["--name", flow, "--pool", "gpu", "--tag", "regional"]
        subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)


def one_job(machine: Machine, number: int) -> dict[str, float]:
    """Seconds of a run: of its sampling, and of all but what a process does once: open the store, load the model."""
    store, name = f"s3://{BUCKET}/job-{number}", f"job-{number}"
    run_id = machine.submit("render/render", job=JOB, store=store, out=str(machine.out), name=name)
    flow_run = machine.completed(run_id)
    (file,) = machine.out.glob(f"{name}-*.json")
    laps = json.loads(file.read_text())["seconds"]
    duration = _moment(flow_run["end_time"]) - _moment(flow_run["start_time"])
    return {"sampling": laps["sample"], "run": duration - laps["open store"] - laps["load model"]}


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


def grid(machine: Machine, number: int, machines: int) -> dict[str, float]:
    """Seconds of the grid from its first shard's start to its last one's end, and what it cost the server."""
    server = processes.running(machine.folder, "server")
    assert server is not None
    memory_before, calls_before = _memory(server), _calls(machine)
    job = GRID | {"job": CELL | {"seed": number}}
    parameters = {"job": job, "parallel_shards": machines, "out": str(machine.out)}
    run_id = machine.submit("grid/grid", **parameters, store=f"s3://{BUCKET}/grid-{number}", name=f"grid-{number}")
    machine.completed(run_id, seconds=3600)
    shards = post(machine.api, "flow_runs/filter", {"deployments": {"name": {"any_": ["shard"]}}, "limit": 200})
    grid_shards = [run for run in shards if f"grid-{number}" in run["name"]]
    (sheet,) = machine.out.glob(f"grid-{number}-*/sheet.json")
    assert len(json.loads(sheet.read_text())["images"]) == CELLS
    return {
        "shards": len(grid_shards),
        "seconds": max(_moment(run["end_time"]) for run in grid_shards)
        - min(_moment(run["start_time"]) for run in grid_shards),
        "calls_per_cell": (_calls(machine) - calls_before) / CELLS,
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
    parser.add_argument("--no-grid", action="store_true", help="leave the grid out: it takes a quarter of an hour")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with s3.s3_server(folder, BUCKET) as port:
            figures = _measure(folder, f"http://127.0.0.1:{port}", with_grid=not options.no_grid)
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    within_limits = figures["job"]["run_ratio"] <= 1.05 and figures.get("speed_up", 1.8) >= 1.8
    return 0 if within_limits else 1


def _measure(folder: Path, endpoint: str, *, with_grid: bool) -> dict[str, Any]:
    variables = {
        "REGIONAL_STORE": f"s3://{BUCKET}",
        "REGIONAL_S3_ENDPOINT": endpoint,
        "REGIONAL_S3_KEY": s3.KEY,
        "REGIONAL_S3_SECRET": s3.SECRET,
        "REGIONAL_MAX_FORWARD_ROWS": str(ROWS_PER_FORWARD),
        # The log of requests is what calls are counted in.
        "PREFECT_SERVER_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_SERVER_LEVEL": "INFO",
    }
    machine = Machine(folder, **variables)
    second_worker: subprocess.Popen[bytes] | None = None
    try:
        machine.up()
        deploy_stand_ins(machine)
        bare = median(bare_seconds() for _ in range(3))
        runs = [one_job(machine, number) for number in range(4)][1:]  # the first is for caches on disk
        run, sampling = (median(seconds[name] for seconds in runs) for name in ("run", "sampling"))
        figures: dict[str, Any] = {
            "job": {
                "bare_seconds": bare,
                "sampling_seconds": sampling,
                "run_seconds": run,
                "sampling_ratio": sampling / bare,
                "run_ratio": run / bare,
            }
        }
        os.environ.update(variables)
        figures["checkpoint"] = checkpoints(endpoint)
        if with_grid:
            figures["one worker"] = grid(machine, 1, 1)
            second_worker = _second_worker(machine)
            workers_path = "work_pools/gpu/workers/filter"
            machine.wait_for("the second worker", lambda: "second" in str(post(machine.api, workers_path, {})))
            figures["two workers"] = grid(machine, 2, 2)
            figures["speed_up"] = figures["one worker"]["seconds"] / figures["two workers"]["seconds"]
        return figures
    finally:
        if second_worker is not None:
            second_worker.terminate()
        machine.up("--down")


def _second_worker(machine: Machine) -> subprocess.Popen[bytes]:
    """One more worker of the pool `gpu`, which then takes two runs."""
    machine.patch("work_pools/gpu", {"concurrency_limit": 2})
    client_env = machine.client | {"PREFECT_HOME": str(machine.folder / "prefect2")}
    env = machine.env | client_env | {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    command = [
        sys.executable,
        "-m",
        "prefect_regional_diffusion.deployments.worker",
        "gpu",
        "--name",
        "second",
        "--limit",
        "1",
    ]
    with (machine.folder / "second.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)


if __name__ == "__main__":
    sys.exit(main())
