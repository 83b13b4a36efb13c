"""A worker: what it says of the runs that it hands back, what it notes of those that it starts, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock
from uuid import UUID, uuid4

import httpx
import psutil
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import (
    OrchestrationResult,
    SetStateStatus,
    StateAcceptDetails,
    StateRejectDetails,
)
from prefect.states import Cancelled, Completed, Crashed
from prefect.utilities.dispatch import lookup_type
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from prefect_regional_diffusion.deployments import process_worker, worker
from prefect_regional_diffusion.deployments.dispatch import Dispatch
from prefect_regional_diffusion.deployments.process_worker import RegionalWorker
from prefect_regional_diffusion.flows.reap import TAKEN_AWAY
from tests.on_server import OnServer
from tests.processes import free_port

RUN = str(uuid4())
REFUSED = OrchestrationResult(
    state=Cancelled(), status=SetStateStatus.REJECT, details=StateRejectDetails(reason="cancelled meanwhile")
)
ACCEPTED = OrchestrationResult(state=None, status=SetStateStatus.ACCEPT, details=StateAcceptDetails())


HandBack = Callable[[State, OrchestrationResult[Any]], tuple[str, str, Mock]]


@pytest.fixture
def hand_back(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> HandBack:
    """Stop a worker with one run that a server knows in a state, and what the server says to its new one.

    Returns what is printed, and the server.
    """

    def stop(state: State, answer: OrchestrationResult[Any]) -> tuple[str, str, Mock]:
        server = MagicMock()
        server.__enter__.return_value = server
        server.read_flow_run.return_value = FlowRun(flow_id=uuid4(), state=state)
        server.set_flow_run_state.return_value = answer
        monkeypatch.setattr("prefect.client.orchestration.get_client", Mock(return_value=server))
        waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
        with subprocess.Popen(waiting) as process, subprocess.Popen(waiting) as run:
            try:
                monkeypatch.setattr(worker, "_runs_of", Mock(return_value={psutil.Process(run.pid): RUN}))
                worker.requeue_runs(process)
            finally:
                process.kill()
                run.kill()
        said = capsys.readouterr()
        return said.out, said.err, server

    return stop


def test_a_run_that_the_server_takes_is_back(hand_back: HandBack) -> None:
    out, err, server = hand_back(Crashed(), ACCEPTED)
    assert out == f"Run {RUN} is back in the queue.\n"
    assert not err
    (_, waiting), _ = server.set_flow_run_state.call_args
    assert waiting.name == "AwaitingRetry"


def test_a_run_that_the_server_refuses_is_not_said_to_be_back(hand_back: HandBack) -> None:
    out, err, _ = hand_back(Crashed(), REFUSED)
    assert not out
    assert err == f"Run {RUN} could not be put back: the server says REJECT (cancelled meanwhile)\n"


def test_a_run_that_has_ended_is_left_alone(hand_back: HandBack) -> None:
    out, err, server = hand_back(Completed(), ACCEPTED)
    assert not out + err
    assert not server.set_flow_run_state.called


def test_ours_is_beside_prefects_own_in_its_list_of_workers() -> None:
    assert lookup_type(BaseWorker, "process") is ProcessWorker
    assert lookup_type(BaseWorker, "regional") is RegionalWorker
    assert RegionalWorker.type == "process", "or no pool of that type would take it"


@pytest.mark.parametrize("error", [ValueError("of one run"), httpx.ConnectError("is away")])
def test_whatever_fails_where_runs_are_chosen_the_worker_takes_what_the_server_offers(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offered = [Mock(), Mock()]
    monkeypatch.setattr(ProcessWorker, "_get_scheduled_flow_runs", AsyncMock(return_value=offered))
    monkeypatch.setattr(Dispatch, "choose", AsyncMock(side_effect=error))
    regional = RegionalWorker("pool")
    monkeypatch.setattr(regional, "_client", Mock())
    monkeypatch.setattr(regional, "_work_pool", Mock())
    assert asyncio.run(regional._get_scheduled_flow_runs()) == offered  # pyright: ignore[reportPrivateUsage]
    (record,) = caplog.records
    assert str(error) in record.getMessage()
    # Where it is no trouble of the server's, we want to know where it came from.
    assert ("Traceback" in caplog.text) == isinstance(error, ValueError)


def test_a_worker_ends_when_what_it_waits_for_swallows_that_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Deaf:
        name, is_setup, cancellations, claimed = "deaf", True, 0, frozenset[UUID]()

        async def start(self, **_options: Any) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancellations += 1
            await asyncio.sleep(60)

    async def told(deaf: Any) -> None:
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(process_worker.work(deaf, with_healthcheck=False), 30)

    monkeypatch.setattr(process_worker, "_SECONDS_TO_STOP", 0.1)
    deaf = Deaf()
    asyncio.run(told(deaf))
    assert deaf.cancellations == 1
    assert capsys.readouterr().out == "Worker 'deaf' stopped!\n"


@pytest.mark.e2e
def test_a_worker_answers_while_it_asks_for_runs_and_ends_when_it_is_told_to(
    on_server: OnServer, env: dict[str, str]
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "prefect_regional_diffusion.deployments.process_worker"]
    webserver = {"PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1", "PREFECT_WORKER_WEBSERVER_PORT": str(port)}

    async def work(client: PrefectClient, _deployment: UUID, pool: str) -> None:
        options = ["--name", "here", "--limit", "1", "--load-seconds", "20", "--with-healthcheck"]
        with subprocess.Popen(
            [*command, pool, *options], env=env | webserver, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                deadline = time.monotonic() + 200
                while not (workers := await client.read_workers_for_work_pool(pool)):
                    assert time.monotonic() < deadline
                    assert process.poll() is None, process.stderr and process.stderr.read()
                    await asyncio.sleep(0.5)
                assert [worker.name for worker in workers] == ["here"]
                assert process.stdout
                assert await asyncio.to_thread(process.stdout.readline) == "Worker 'here' started!\n"
                async with httpx.AsyncClient(trust_env=False) as web:
                    assert (await web.get(f"http://127.0.0.1:{port}/health")).json() == {"message": "OK"}
            finally:
                process.terminate()
                out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert "Worker 'here' stopped!" in out
        assert "warning" not in err.lower()

    on_server(work)


@pytest.mark.e2e
def test_a_run_that_has_no_process_yet_is_back_in_the_queue_when_its_worker_ends(
    on_server: OnServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody else takes a run that is Pending, until the reaper finds it after minutes."""

    async def unanswered(_worker: RegionalWorker, _flow_run_id: UUID) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    monkeypatch.setattr(RegionalWorker, "_give_worker_labels_to_flow_run", unanswered)

    async def work(client: PrefectClient, deployment: UUID, pool: str) -> None:
        run = await client.create_flow_run_from_deployment(deployment)
        await asyncio.wait_for(process_worker.work(RegionalWorker(pool, limit=1), with_healthcheck=False), 100)
        state = (await client.read_flow_run(run.id)).state
        assert state is not None
        assert (state.name, state.message) == ("AwaitingRetry", f"{TAKEN_AWAY} ({os.uname().nodename})")
        assert f"Run {run.id} is back in the queue.\n" in capsys.readouterr().out

    on_server(work)
