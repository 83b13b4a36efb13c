"""Grids and batches end to end: real processes, a real Prefect server with a worker, a shard that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prefect_regional_diffusion.sampling_core.job.grid_job import cells
from prefect_regional_diffusion.tasks.inputs.job_files import read_grid
from prefect_regional_diffusion.tasks.runtime.batch_plan import plan_batch
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests import forked
from tests.processes import ROOT, environment, has_ended, post, regional, stop

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("server")]
SEEDS, FORK = ROOT / "examples" / "grids" / "seeds.yaml", ROOT / "examples" / "grids" / "fork.yaml"


def run(*arguments: object, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return forked.run(regional(*arguments), cwd=cwd, env=env)


def drawn(*arguments: object, cwd: Path, env: dict[str, str]) -> dict[str, Any]:
    done = run(*arguments, "--json", cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def nearly_equal(one: bytes, two: bytes) -> bool:
    """With other rows in a forward, results round otherwise: now and then a value is the next one."""
    return len(one) == len(two) and max(abs(a - b) for a, b in zip(one, two, strict=True)) <= 1


def test_a_grid_is_its_cells_and_a_finished_one_costs_nothing(tmp_path: Path, env: dict[str, str]) -> None:
    first = drawn("grid", SEEDS, cwd=tmp_path, env=env)
    assert list(first["images"]) == ["r0c0", "r0c1", "r0c2", "r1c0", "r1c1", "r1c2"]
    assert first["counted"][0]["drawn"] == 6
    jobs = cells(read_grid(SEEDS))
    planned = plan_batch(jobs, {one.name: prepare(one.job) for one in jobs}).cost
    assert (first["totals"]["drawn"], first["totals"]["missing"]) == (6, 0)
    assert (first["totals"]["evaluations"], first["totals"]["forwards"]) == (planned.evaluations, planned.forwards)
    with Image.open(tmp_path / first["sheet"]) as sheet:
        assert sheet.size == (3 * 128 + 16, 2 * 128 + 12)
        cell = sheet.crop((136, 4, 264, 132)).tobytes()
    assert cell == pixels(tmp_path / first["images"]["r0c1"][0])

    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(read_grid(SEEDS).job.model_dump(exclude_unset=True) | {"seed": 99}))
    alone = drawn("render", job, "--store", "other", cwd=tmp_path, env=env)
    assert nearly_equal(cell, pixels(tmp_path / alone["images"][0]))

    again = drawn("grid", SEEDS, cwd=tmp_path, env=env)
    (counted,) = again["counted"]
    costs = {"evaluations": 0, "canvas_evaluations": 0, "forwards": 0}
    assert counted | {"seconds": None} == {"drawn": 0, "found": 6, "seconds": None} | costs
    other = drawn("grid", SEEDS, "--set", "cells.0.seed=100", cwd=tmp_path, env=env)
    assert (other["counted"][0]["drawn"], other["counted"][0]["found"]) == (1, 5)


def test_a_fork_draws_its_first_steps_once(tmp_path: Path, env: dict[str, str]) -> None:
    """4 steps of one run (2 rows, then 3 with the region), then 12 of four; the job itself has nothing left to do."""
    found = drawn("grid", FORK, cwd=tmp_path, env=env)
    at_fork = 4 + 2  # from one latent: the negative row and the region's are the same for all
    assert found["counted"][0]["evaluations"] == 2 + 3 * 3 + at_fork + 11 * 4 * 3
    assert found["counted"][0]["forwards"] == 16
    assert len({pixels(tmp_path / paths[0]) for paths in found["images"].values()}) == 4


def test_shards_share_the_steps_before_a_fork_whatever_is_kept(tmp_path: Path, env: dict[str, str]) -> None:
    """The second shard goes on from the first one's state at the fork; when all are drawn, the policy holds."""
    keep = env | {"REGIONAL_KEEP": "final"}
    found = drawn("grid", FORK, "--per-shard", 2, cwd=tmp_path, env=keep)
    # In the first step after the fork, cells share rows that have one latent there, and not those that each read it.
    shared, after = 2 + 3 * 3, 11 * 2 * 3
    assert [shard["evaluations"] for shard in found["counted"]] == [shared + 2 + 2 + after, 2 * 3 + after]
    left = [int(state.stem) for state in (tmp_path / ".regional" / "store").glob("latents/*/*.safetensors")]
    assert left == [16] * 4


def test_a_batch_draws_each_file(tmp_path: Path, env: dict[str, str]) -> None:
    """Unlike jobs side by side: other canvases, another composition, several pictures."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    picture = str(next((ROOT / "examples" / "pictures").glob("*.png")))
    jobs: dict[str, dict[str, Any]] = {
        "wide": {"prompt": "a red background", "width": 192, "steps": 4},
        "over": {"prompt": "a red background", "steps": 4, "denoise": 0.5, "init_image": picture},
        "again": {"prompt": "a blue background", "steps": 4, "denoise": 0.5, "init_image": picture},
        "two": {"prompt": "a blue background", "steps": 3, "batch_size": 2},
        "node": {
            "prompt": "a green background",
            "steps": 3,
            "composition": "sequential",
            "regions": [{"prompt": "a red background", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}],
        },
    }
    for name, job in jobs.items():
        (folder / f"{name}.json").write_text(json.dumps(job))
    found = drawn("batch", "jobs/*.json", cwd=tmp_path, env=env)
    assert {name: len(paths) for name, paths in found["images"].items()} == dict.fromkeys(jobs, 1) | {"two": 2}
    for name, paths in found["images"].items():
        alone = drawn("render", folder / f"{name}.json", "--store", "other", cwd=tmp_path, env=env)
        for one, two in zip(paths, alone["images"], strict=True):
            assert nearly_equal(pixels(tmp_path / one), pixels(tmp_path / two))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["grid", SEEDS, "--set", "job.model=nowhere"], "job.model: "),
        (["batch", "../*.yaml"], "files: '../*.yaml' is not allowed; allowed: a pattern below"),
        (["batch", "*.nothing"], "files: *.nothing finds no job files in /"),
        (["submit", SEEDS], "Prefect server http"),
        (["submit", SEEDS, "--time-limit", "0"], "--time-limit: 0.0 is not allowed; allowed: minutes, more than 0 and"),
        (
            ["submit", SEEDS, "--pool", "moon"],
            "--pool: 'moon' is not allowed; allowed: a pool with a deployment of grid",
        ),
    ],
)
def test_mistakes_get_one_line(arguments: list[object], line: str, tmp_path: Path, env: dict[str, str]) -> None:
    done = run(*arguments, cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_too_many_bytes_are_refused_before_the_server_is_asked(tmp_path: Path) -> None:
    job = tmp_path / "long.json"
    job.write_text(json.dumps({"prompt": "x" * 600_000}))
    done = run("submit", job, cwd=tmp_path, env=environment(tmp_path, "http://127.0.0.1:9/api"))
    assert done.returncode == 2
    assert "REGIONAL_MAX_JOB_BYTES" in done.stderr
    job.write_text(json.dumps({"prompt": "x"}))
    done = run("submit", job, cwd=tmp_path, env=environment(tmp_path, "http://127.0.0.1:9/api"))
    assert done.returncode == 2
    assert done.stderr == "Prefect server http://127.0.0.1:9/api does not answer\n"


DEPLOY = """
import sys
from prefect_regional_diffusion.flows.common.environment import set_defaults
set_defaults()
from prefect import flow
for name, given in (("shard", {}), ("grid", dict(parallel_shards=2, crash_timeout_seconds=1))):
    loaded = flow.from_source(sys.argv[1], entrypoint=f"flows/{name}.py:{name}")
    loaded.deploy(name, work_pool_name="machines", parameters=given, print_next_steps=False, ignore_warnings=True)
"""


@contextmanager
def worker(cwd: Path, env: dict[str, str]) -> Generator[None]:
    """A worker with room for a parent and two shards."""
    command = [
        str(Path(sys.executable).parent / "prefect"),
        "worker",
        "start",
        "--pool",
        "machines",
        "--type",
        "process",
    ]
    quick = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    with (cwd / "worker.log").open("w") as log:
        process = subprocess.Popen([*command, "--limit", "3"], cwd=cwd, env=env | quick, stdout=log, stderr=log)
    try:
        yield
    finally:
        stop(process)


def until(found: Callable[[], Any], what: str, seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(1)
    raise AssertionError(f"waited in vain for {what}")


@pytest.mark.timeout(900)  # some ten processes, one after the other
def test_a_lost_shard_costs_its_unfinished_cells_alone(tmp_path: Path, env: dict[str, str], server: str) -> None:
    """Of two shards one is killed: the parent fails and names its cells; retried, it starts that shard anew alone."""
    store, out = tmp_path / "store", tmp_path / "out"

    def runs(name: str) -> list[dict[str, Any]]:
        """Those that the worker draws; other tests use this server as well."""
        asked = {"flows": {"name": {"any_": [name]}}, "sort": "START_TIME_ASC"}
        return [one for one in post(server, "flow_runs/filter", asked) if one["deployment_id"]]

    def under_way() -> int | None:
        """The process of a shard that has stored states."""
        shards = [one for one in runs("shard") if one["state_type"] == "RUNNING" and one["infrastructure_pid"]]
        ready = len(shards) == 2 and len(list(store.glob("latents/*/*"))) >= 8
        return int(shards[0]["infrastructure_pid"].rpartition(":")[2]) if ready else None

    places = {"REGIONAL_STORE": str(store), "REGIONAL_OUT": str(out)}
    with worker(tmp_path, env | places | {"REGIONAL_PREVIEW_SECONDS": "0.1"}):
        until(lambda: post(server, "work_pools/filter", {"work_pools": {"name": {"any_": ["machines"]}}}), "the pool")
        forked.run([sys.executable, "-c", DEPLOY, str(ROOT)], cwd=tmp_path, env=env).check_returncode()
        command = regional("submit", SEEDS, "--watch", "--pool", "machines", "--set", "job.steps=40")
        with (tmp_path / "stdout").open("w") as said, (tmp_path / "stderr").open("w") as err:
            asked = forked.Forked(command, cwd=tmp_path, env=env, stdout=said, stderr=err)
        os.kill(until(under_way, "two shards at work"), signal.SIGKILL)
        asked.wait(400)
        stdout, stderr = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
        assert asked.returncode == 1
        assert stdout.startswith("http://"), "the run's address"
        assert "not drawn: r0c0, r0c1, r0c2" in stderr or "not drawn: r1c0, r1c1, r1c2" in stderr
        (parent,) = runs("grid")
        assert [one["state_type"] for one in runs("shard")].count("COMPLETED") == 1

        # Prefect's worker ends with an error if a run is started anew while it still waits for its first process.
        pid = int(parent["infrastructure_pid"].rpartition(":")[2])
        until(lambda: has_ended(pid), "the end of the parent's process")
        time.sleep(3)
        retry = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
        post(server, f"flow_runs/{parent['id']}/set_state", retry)
        until(lambda: runs("grid")[0]["state_type"] == "COMPLETED", "the retried parent")
        assert {one["name"][:10] for one in runs("shard")} == {"shard 1 of", "shard 2 of"}
        ended = runs("shard")
        assert sorted(one["state_type"] for one in ended) == ["COMPLETED", "COMPLETED", "CRASHED"]

    (sheet,) = out.glob("*/sheet.json")
    merged = json.loads(sheet.read_text())
    assert (len(merged["images"]), merged["missing"]) == (6, [])
    whole = drawn("grid", SEEDS, "--set", "job.steps=40", "--store", "other", cwd=tmp_path, env=env)
    for name, (path,) in merged["images"].items():
        assert nearly_equal(pixels(sheet.parent / path), pixels(tmp_path / whole["images"][name][0]))
    artifacts = post(server, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [parent["id"]]}}})
    newest = {one["key"]: one["data"] for one in sorted(artifacts, key=lambda one: one["created"])}
    assert newest["sheet"].startswith("data:image/jpeg;base64,")
    assert newest["progress"] == 100
    whole_shard = next(one["id"] for one in ended if one["state_type"] == "COMPLETED")
    artifacts = post(server, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [whole_shard]}}})
    assert [(one["data"], one["description"]) for one in artifacts if one["key"] == "progress"] == [
        (100, "Step 120 of 120 in 3 jobs")
    ]
    (seen,) = [one["data"] for one in artifacts if one["key"] == "preview"]
    assert seen.startswith("data:image/jpeg;base64,")
    assert "| r1c2 | a yellow background | 12 | drawn |" in newest["cells"]
