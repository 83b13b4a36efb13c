"""Runs of a machine's workers that a resident process forks: with Prefect's engine, its server, and pictures."""

from __future__ import annotations

import inspect
import io
import os
import ssl
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

import prefect_regional_diffusion.deployments.resident as resident_package
from prefect_regional_diffusion.deployments import background_processes as processes
from prefect_regional_diffusion.deployments.resident import prefect_internals
from prefect_regional_diffusion.deployments.resident.held_models import read_held
from tests.machine import Machine
from tests.processes import EXAMPLES, has_ended, post, processes_of, waiting_for_runs

on_a_machine = [pytest.mark.e2e, pytest.mark.xdist_group("machine"), pytest.mark.timeout(900)]
JOB: dict[str, Any] = yaml.safe_load(next(path for path in EXAMPLES if path.stem == "two_halves").read_text())


def test_what_is_used_of_prefect_beside_its_public_interface_is_as_it_was() -> None:
    """A release of Prefect that changes this needs a look at `deployments.resident`."""
    starter = inspect.signature(prefect_internals.EngineCommandStarter).parameters
    needed = "command entrypoint cwd env stream_output control_channel isolate_process_group env_overrides_settings"
    assert starter.keys() >= set(needed.split())
    executor = inspect.signature(prefect_internals.FlowRunExecutorContext.create_executor).parameters
    assert list(executor) == ["self", "flow_run", "starter", "resolve_flow", "propose_submitting", "hook_runner"]
    assert list(inspect.signature(ProcessWorker.run).parameters) == ["self", "flow_run", "configuration", "task_status"]
    assert list(inspect.signature(ProcessWorker._get_scheduled_flow_runs).parameters) == ["self"]
    assert inspect.getsource(BaseWorker.get_and_submit_flow_runs).count("self._get_scheduled_flow_runs()") == 1
    assert "at_exit" in inspect.signature(prefect_internals.QueueService.drain_all).parameters
    assert prefect_internals.get_global_loop()._on_shutdown is not None
    clients = inspect.getsource(prefect_internals.orchestration)
    assert clients.count("ssl.create_default_context(") == 4
    assert clients.count("certifi.where()") == 2
    engine = inspect.getsource(prefect_internals.engine)
    assert 'os.environ.get("PREFECT__FLOW_RUN_ID")' in engine
    assert 'os.environ.get("PREFECT__FLOW_ENTRYPOINT")' in inspect.getsource(prefect_internals.flow_engine.load_flow)


def test_prefects_clients_share_the_certificates_of_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_internals.orchestration, "ssl", ssl)
    prefect_internals.share_tls_contexts()
    read, made = ssl.SSLContext.load_verify_locations, list[object]()
    monkeypatch.setattr(
        ssl.SSLContext, "load_verify_locations", lambda *files, **named: made.append(read(*files, **named))
    )
    for kind in (PrefectClient, SyncPrefectClient):
        kind("http://127.0.0.1:4200/api")
    assert not made
    monkeypatch.setattr(prefect_internals.orchestration, "ssl", ssl)
    PrefectClient("http://127.0.0.1:4200/api")
    assert made, "it is not there any more that certificates are read"


def draw(machine: Machine, name: str, **changes: Any) -> str:
    """Start a run that keeps nothing of others: its store is its own."""
    store = str(machine.store / name)
    return machine.submit("render/render", job=JOB | changes, store=store, out=str(machine.out / name), name=name)


def picture(machine: Machine, name: str) -> bytes:
    (file,) = (machine.out / name).glob("*.png")
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        return image.convert("RGB").tobytes()


def loaded(machine: Machine, run: str) -> str:
    """What the log of a run says of loading."""
    lines = post(machine.api, "logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
    return "\n".join(line["message"] for line in lines if line["message"].startswith("loaded"))


def waiting_now(machine: Machine) -> list[psutil.Process]:
    """The processes that have drawn and wait for the next run: one at most."""
    keeper = processes.running(machine.folder, "worker-gpu")
    assert keeper is not None
    return waiting_for_runs(keeper)


def waiting(machine: Machine) -> psutil.Process:
    """That which soon waits."""
    found: list[psutil.Process] = []

    def is_there() -> bool:
        found[:] = waiting_now(machine)
        return bool(found)

    machine.wait_for("a process that waits", is_there)
    (process,) = found
    return process


def held(machine: Machine) -> frozenset[str]:
    """What the worker takes for being in memory."""
    command = machine.worker().cmdline()
    return read_held(str(Path(command[command.index("--resident") + 1]).parent))


@pytest.mark.usefixtures("machine")
class TestRuns:
    pytestmark = on_a_machine

    def test_a_model_is_loaded_once_and_pictures_are_those_of_a_new_process(self, machine: Machine) -> None:
        for process in waiting_now(machine):
            process.kill()
        first = draw(machine, "fresh")
        machine.completed(first)
        process = waiting(machine)
        other = draw(machine, "other", sampler="dpmpp_2m_sde", seed=9)
        machine.completed(other)
        again = draw(machine, "warm")
        machine.completed(again)
        assert waiting(machine) == process
        assert "denoiser of embedded" in loaded(machine, first)
        assert held(machine) == {"embedded"}
        assert "denoiser of embedded" not in loaded(machine, other) + loaded(machine, again)
        assert picture(machine, "warm") == picture(machine, "fresh") != picture(machine, "other")

    def test_a_run_that_is_cancelled_is_the_last_of_its_process(self, machine: Machine) -> None:
        run = draw(machine, "cancelled", steps=900, width=256, height=256)
        machine.wait_for("the run", lambda: machine.run(run)["state_type"] == "RUNNING")
        cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        post(machine.api, f"flow_runs/{run}/set_state", cancelling)
        machine.wait_for("its end", lambda: machine.run(run)["state_type"] == "CANCELLED")
        machine.wait_for("the end of its processes", lambda: not processes_of(run))
        machine.completed(draw(machine, "after"))

    def test_code_that_changes_under_way_is_the_next_runs(self, machine: Machine) -> None:
        run = draw(machine, "under-way", steps=60)
        machine.wait_for("the run", lambda: machine.run(run)["state_type"] == "RUNNING")
        process = processes_of(run)[0]
        os.utime(Path(resident_package.__file__))
        next_run = draw(machine, "next")
        machine.completed(run)
        machine.completed(next_run)
        assert waiting(machine) != process
        assert has_ended(process.pid)
