"""One machine, from `make up` to `make down`: a run that is killed in three ways ends with its picture nevertheless."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import uuid4

import psutil
import pytest
import yaml

from prefect_regional_diffusion.deployments import background_processes as processes
from prefect_regional_diffusion.deployments.postgres import installed_programs
from prefect_regional_diffusion.tasks.inputs.job_files import read_grid
from tests.forked import run
from tests.machine import Machine
from tests.processes import EXAMPLES, ROOT, post, processes_of, regional, with_variable

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("machine"), pytest.mark.timeout(900)]
HAS_POSTGRES = installed_programs() is not None
PARTS = 3 + HAS_POSTGRES
JOB: dict[str, Any] = yaml.safe_load(next(path for path in EXAMPLES if path.stem == "two_halves").read_text())
GRID = ROOT / "examples" / "grids" / "seeds.yaml"


def test_up_again_starts_nothing_twice(machine: Machine) -> None:
    before = [processes.running(machine.folder, part) for part in ("server", "worker-gpu", "worker-control")]
    said = machine.up()
    assert said.count("runs already") == PARTS
    assert f"http://127.0.0.1:{machine.port}" in said
    assert [processes.running(machine.folder, part) for part in ("server", "worker-gpu", "worker-control")] == before
    schedules = [deployment["schedules"] for deployment in post(machine.api, "deployments/filter", {})]
    assert sorted(map(len, schedules)) == [0, 0, 0, 0, 0, 1, 2]
    assert len(post(machine.api, "automations/filter", {})) == 1


def test_runs_are_in_postgres_where_it_is_installed(machine: Machine) -> None:
    assert (processes.running(machine.folder, "database") is not None) == HAS_POSTGRES
    assert (machine.folder / "prefect" / "prefect.db").exists() != HAS_POSTGRES


def test_blocks_have_forms_in_the_ui(machine: Machine) -> None:
    kinds = {kind["slug"]: kind for kind in post(machine.api, "block_types/filter", {"limit": 200})}
    for slug in ("regional-store", "model-catalog"):
        assert kinds[slug]["logo_url"]
        schemas = post(
            machine.api, "block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kinds[slug]["id"]]}}}
        )
        assert schemas, slug


def test_everything_listens_on_loopback_only(machine: Machine) -> None:
    server = processes.running(machine.folder, "server")
    assert server is not None
    listening = set[str]()
    for process in [server, *server.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # some are short
            connections = process.net_connections("inet")
            listening |= {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_submit_follows_a_run_task_by_task(machine: Machine) -> None:
    (example,) = (path for path in EXAMPLES if path.stem == "two_halves")
    env = machine.env | {"PREFECT_API_URL": machine.api}
    command = regional("submit", example, "--watch", "--set", f"seed={uuid4().int % 2**32}")
    done = run(command, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"http://127.0.0.1:{machine.port}/runs/flow-run/")
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("Completed")
    tasks = [line.strip() for line in lines if line.startswith("  ")]
    first, last = ["build masks", "encode prompts", "load model embedded"], ["decode", "publish"]
    assert (tasks[:3], tasks[-2:]) == (first, last)
    steps = [int(task.rpartition(" ")[2].partition("-")[0]) for task in tasks[3:-2]]
    assert steps == sorted(steps)
    assert steps[0] == 1


def test_a_run_survives_its_process_its_worker_and_its_machine(machine: Machine) -> None:
    """One run, killed three times, each time after it has got on."""
    job = JOB | {"steps": 60}
    store, out = machine.store / "killed", machine.out / "killed"
    run = machine.submit("render/render", job=job, checkpoint_steps=1, store=str(store), out=str(out))

    def states() -> int:
        return len(list(store.glob("latents/*/*.safetensors")))

    def wait_for_progress() -> None:
        before = states()
        machine.wait_for("progress", lambda: states() >= before + 3)

    # Its process, with -9. The worker sees that and reports a crash; the reaper comes by and starts it again.
    wait_for_progress()
    processes_of(run)[0].kill()
    machine.wait_for("the crash", lambda: machine.run(run)["state_type"] == "CRASHED")
    machine.wait_for("the second start", lambda: machine.run(run)["run_count"] == 2, seconds=300)

    # The machine is taken away: SIGTERM. The run is back in the queue at once, without the reaper.
    wait_for_progress()
    keeper = processes.running(machine.folder, "worker-gpu")
    assert keeper is not None
    keeper.send_signal(signal.SIGTERM)
    psutil.wait_procs([keeper], timeout=60)
    waiting = machine.run(run)["state"]
    assert (waiting["type"], waiting["name"]) == ("SCHEDULED", "AwaitingRetry"), waiting
    assert not processes_of(run), "it runs on without a worker"

    # Worker and process at once, with -9, while the rest is still being set up: nobody is left to say so.
    with ThreadPoolExecutor(1) as beside:
        setting_up = beside.submit(machine.up)
        wait_for_progress()
        process = processes_of(run)[0]
        machine.worker().kill()
        process.kill()
        setting_up.result()
    time.sleep(40)  # its last heartbeat must be 45 s old, and the reaper's own process takes its time to start
    machine.reap(running_seconds=45, second_look_seconds=31)
    if machine.run(run)["state_type"] == "RUNNING":  # looked too early
        time.sleep(45)
        machine.reap(running_seconds=45, second_look_seconds=31)

    ended = machine.completed(run)
    assert ended["run_count"] == 4
    (record,) = [json.loads(file.read_text()) for file in out.glob("*.json")]
    assert record["steps_restored"] + record["steps_computed"] == 60
    assert record["steps_restored"] >= 9, "three chunks were finished before each kill"


def test_a_grid_whose_own_process_is_killed_ends_with_all_its_cells(machine: Machine) -> None:
    """The reaper starts it again, and it finds its shards; a picture that is lost later is drawn again by Retry."""
    job = read_grid(GRID)
    job = job.model_copy(update={"job": job.job.model_copy(update={"steps": 40})})
    store, out = machine.store / "grid", machine.out / "grid"
    given: dict[str, Any] = {
        "job": job.model_dump(mode="json", exclude_unset=True),
        "parallel_shards": 2,
        "name": "killed",
    }
    grid = machine.submit("grid/grid", **given, store=str(store), out=str(out))

    def shards() -> dict[str, tuple[str, int]]:
        """State and starts of the grid's shards."""
        asked = {"flow_runs": {"name": {"like_": "of grid killed"}}}
        found = post(machine.api, "flow_runs/filter", asked)
        return {run["id"]: (run["state_type"], run["run_count"]) for run in found}

    machine.wait_for("a shard at work", lambda: list(store.glob("latents/*/*")))
    processes_of(grid)[0].kill()
    machine.wait_for("the crash", lambda: machine.run(grid)["state_type"] == "CRASHED")
    begun = shards()
    assert len(begun) == 2
    time.sleep(32)  # sooner than after half a minute the worker may report it again
    machine.reap(crashed_seconds=30)
    machine.wait_for("the second start", lambda: machine.run(grid)["run_count"] == 2, seconds=300)
    assert machine.completed(grid)["run_count"] == 2
    assert shards() == dict.fromkeys(begun, ("COMPLETED", 1)), "a shard was disturbed, or started twice"
    (sheet,) = out.glob("killed-*/sheet.json")
    drawn = json.loads(sheet.read_text())
    assert (len(drawn["images"]), drawn["missing"]) == (6, [])

    pictures = {path: path.read_bytes() for path in store.glob("pictures/*.png")}
    assert len(pictures) == 6
    lost = min(pictures)
    lost.unlink()
    retry = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    post(machine.api, f"flow_runs/{grid}/set_state", retry)
    machine.wait_for("the third start", lambda: machine.run(grid)["run_count"] == 3, seconds=120)
    machine.completed(grid)
    assert sorted(shards().values()) == [("COMPLETED", 1)] * 3
    assert {path: path.read_bytes() for path in store.glob("pictures/*.png")} == pictures


def test_the_reaper_leaves_a_healthy_run_alone_and_fails_a_mistaken_one(machine: Machine) -> None:
    """The one runs on although its state says that it crashed: its heartbeats say otherwise. The other has a parameter
    that its flow does not know: it would crash however often it is started.
    """
    mistaken = machine.submit("render/render", job=JOB, stepz=20)
    machine.wait_for("its crash", lambda: machine.run(mistaken)["state_type"] == "CRASHED")
    store = machine.store / "healthy"
    job = JOB | {"steps": 900, "width": 256, "height": 256}
    run = machine.submit("render/render", job=job, store=str(store), out=str(machine.out))
    try:
        machine.wait_for("the run", lambda: machine.run(run)["state_type"] == "RUNNING")
        crashed = {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True}
        post(machine.api, f"flow_runs/{run}/set_state", crashed)
        time.sleep(50)  # a heartbeat comes every 30 s
        machine.reap(crashed_seconds=45)
        assert machine.run(run)["state_type"] in ("CRASHED", "COMPLETED")
        assert machine.run(run)["run_count"] == 1
    finally:
        # The other tests need its place.
        for process in processes_of(run):
            process.kill()
        machine.delete(f"flow_runs/{run}")
    failed = machine.run(mistaken)
    assert failed["state_type"] == "FAILED"
    assert failed["state"]["message"].startswith("parameters: 'stepz' is not allowed; allowed: job, ")


def test_down_leaves_nothing_running(machine: Machine) -> None:
    """The last test of the shared machine: one after it would start all of it again."""
    said = machine.up("--down")
    assert said.count("stopped") == PARTS
    assert not with_variable(processes.OWNER_TAG, str(machine.folder))
    # Twice does no harm, and a file from before a reboot does not make it kill a stranger.
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (machine.folder / "server.json").write_text(
            json.dumps({"pid": stranger.pid, **processes.birth(stranger.pid), "ticks": 1})
        )
        assert machine.up("--down").count("was not running") == PARTS
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
