"""What a worker says of the runs that it hands back, without a server. With one: test_up.py."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from unittest.mock import AsyncMock, MagicMock, Mock
from uuid import uuid4

import psutil
import pytest
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
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from prefect_regional_diffusion.deployments import worker
from prefect_regional_diffusion.deployments.process_worker import AsThePoolSays, RegionalWorker

RUN = str(uuid4())
REFUSED = OrchestrationResult(
    state=Cancelled(), status=SetStateStatus.REJECT, details=StateRejectDetails(reason="cancelled meanwhile")
)
ACCEPTED = OrchestrationResult(state=None, status=SetStateStatus.ACCEPT, details=StateAcceptDetails())


HandBack = Callable[[State, OrchestrationResult], tuple[str, str, Mock]]


@pytest.fixture
def hand_back(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> HandBack:
    """Stop a worker with one run that a server knows in a state, and what the server says to its new one.

    Returns what is printed, and the server.
    """

    def stop(state: State, answer: OrchestrationResult) -> tuple[str, str, Mock]:
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


def test_a_worker_notes_the_models_of_runs_that_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """And that none are left where the process of one did not end well."""
    ours = RegionalWorker("gpu", load_seconds=20)
    dispatch = Mock()
    monkeypatch.setattr(ours, "_dispatch", dispatch)
    run = FlowRun(flow_id=uuid4())
    for code, losses in ((0, 0), (1, 1)):
        result = ProcessWorkerResult(status_code=code, identifier="1")
        monkeypatch.setattr(ProcessWorker, "run", AsyncMock(return_value=result))
        assert asyncio.run(ours.run(run, AsThePoolSays())) is result
        dispatch.note_start.assert_called_with(run)
        assert dispatch.note_loss.call_count == losses
