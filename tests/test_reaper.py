"""Which runs the reaper starts again, and which it leaves alone. That it does so in earnest: tests/test_up.py."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus, StateAbortDetails, StateAcceptDetails
from prefect.settings import PREFECT_API_URL, temporary_settings

import prefect_regional_diffusion.deployments.requeueing
import prefect_regional_diffusion.flows.reap
from prefect_regional_diffusion.flows.reap import (
    STORING,
    TAKEN_AWAY,
    LivenessTimeouts,
    Observation,
    decide,
    in_vain,
    reap,
)
from prefect_regional_diffusion.tasks.sample import base_only_steps, regional_steps
from prefect_regional_diffusion.tasks.save_images import keep_pictures
from tests.forked import Forked
from tests.processes import ROOT, post

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PATIENCE = LivenessTimeouts(
    running=timedelta(seconds=100), pending=timedelta(seconds=300), crashed=timedelta(seconds=60), restarts=5
)


def seen(state: StateType, silent: float, restarts: int = 0) -> Observation:
    return Observation(state, NOW - timedelta(seconds=silent), restarts)


@pytest.mark.parametrize(
    ("state", "silent", "restarts", "verdict"),
    [
        (StateType.RUNNING, 35, 0, "leave"),  # a heartbeat comes every 30 s
        (StateType.RUNNING, 99, 0, "leave"),
        (StateType.RUNNING, 101, 0, "start again"),
        (StateType.PENDING, 101, 0, "leave"),  # starting takes its time
        (StateType.PENDING, 301, 0, "start again"),
        (StateType.CRASHED, 7, 0, "leave"),  # the worker reports a crash again after about 5 s
        (StateType.CRASHED, 61, 0, "start again"),
        (StateType.CRASHED, 61, 4, "start again"),
        (StateType.CRASHED, 61, 5, "give up"),
        (StateType.RUNNING, 101, 5, "give up"),
        (StateType.CANCELLING, 101, 0, "cancel"),  # or its slot would be taken for ever
        (StateType.CANCELLING, 101, 9, "cancel"),
        (StateType.CANCELLING, 35, 0, "leave"),
    ],
)
def test_verdicts(state: StateType, silent: float, restarts: int, verdict: str) -> None:
    assert decide(seen(state, silent, restarts), NOW, PATIENCE) == verdict


@given(st.sampled_from(StateType), st.floats(0, 59.9), st.integers(0, 100))
def test_a_run_that_was_heard_of_within_a_minute_is_never_touched(
    state: StateType, silent: float, restarts: int
) -> None:
    """Also one that an automation has called crashed, and which sends heartbeats all the same."""
    assert decide(seen(state, silent, restarts), NOW, PATIENCE) == "leave"


@given(
    st.sampled_from(
        [StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.SCHEDULED, StateType.PAUSED]
    ),
    st.floats(0, 1e7),
)
def test_what_has_ended_or_waits_is_never_touched(state: StateType, silent: float) -> None:
    assert decide(seen(state, silent), NOW, PATIENCE) == "leave"


@given(st.floats(-3600, 0), st.sampled_from(StateType))
def test_a_clock_that_lags_behind_the_server_kills_nothing(silent: float, state: StateType) -> None:
    assert decide(seen(state, silent), NOW, PATIENCE) == "leave"


RUNNING, DEAD = State(type=StateType.RUNNING), State(type=StateType.CRASHED)
AGAIN = State(type=StateType.SCHEDULED, name="AwaitingRetry", message="Started again: it was left behind by a crash")
TAKEN = State(type=StateType.SCHEDULED, name="AwaitingRetry", message="Its machine was taken away (spot-7)")
GIVEN_UP = State(type=StateType.CRASHED, name="GivenUp", message="Given up after 6 starts")
RETRY = State(type=StateType.SCHEDULED, name="AwaitingRetry", message="Retry from the UI")
WAITING, LATE = State(type=StateType.SCHEDULED), State(type=StateType.SCHEDULED, name="Late")
START, NEW_START = [WAITING, LATE, RUNNING, DEAD], [AGAIN, LATE, State(type=StateType.PENDING), RUNNING, DEAD]
TAKEN_IN_THE_MIDST = [TAKEN, RUNNING, DEAD]


@pytest.mark.parametrize(
    ("history", "got_on", "restarts"),
    [
        (START, 0, 0),
        (START + NEW_START * 3, 0, 3),
        (START + NEW_START * 5 + [GIVEN_UP], 0, 5),
        (START + NEW_START * 5 + [GIVEN_UP, RETRY, RUNNING, DEAD], 0, 0),  # looked after again
        (START + NEW_START * 5 + [GIVEN_UP, RETRY, RUNNING, DEAD] + NEW_START * 2, 0, 2),
        (START + NEW_START * 3 + [RETRY, RUNNING, DEAD] + NEW_START, 0, 1),  # retried before it was given up
        (START + NEW_START * 9, 1, 9),
        (START + NEW_START * 9, 8, 2),
        (START + NEW_START * 9, 10, 0),
        (START + NEW_START * 9, 11, 0),  # more starts than states, however that may be
        (START + NEW_START * 5 + TAKEN_IN_THE_MIDST, 0, 5),  # its machine went: that is no progress, nor a wish
        ([WAITING, DEAD, AGAIN, DEAD, AGAIN, DEAD], 0, 2),  # it never came to run
        ([WAITING, RUNNING, State(type=StateType.FAILED), RETRY, RUNNING, DEAD, *NEW_START], 0, 1),
    ],
)
def test_only_new_starts_in_vain_count(history: list[State], got_on: int, restarts: int) -> None:
    assert in_vain(history, got_on) == restarts


@given(st.lists(st.sampled_from([RUNNING, DEAD, AGAIN, TAKEN, GIVEN_UP, RETRY, WAITING, LATE])), st.integers(0, 20))
def test_progress_never_adds_to_the_count(history: list[State], got_on: int) -> None:
    assert 0 <= in_vain(history, got_on + 1) <= in_vain(history, got_on) <= history.count(AGAIN)


def test_tasks_that_store_go_by_the_names_that_are_looked_for() -> None:
    storing = [base_only_steps, regional_steps, keep_pictures]
    assert [task.run_name.partition("{")[0] for task in storing] == list(STORING)


def test_what_a_worker_says_when_its_machine_goes_is_known() -> None:
    assert str(TAKEN.message).startswith(TAKEN_AWAY)
    assert "TAKEN_AWAY" in inspect.getsource(prefect_regional_diffusion.deployments.requeueing._requeue)


STARTED = """
import asyncio, sys
from uuid import UUID
from prefect import flow, get_client, task
from prefect.flow_engine import run_flow_async

@task(task_run_name="load model {number}")
async def load(number): ...

@task(task_run_name="regional steps {number}-{number}")
async def regional_steps(number): ...

@flow(name="crashing")
async def crashing():
    await load(0)
    for number in range(int(sys.argv[2])):
        await regional_steps(number)
    await asyncio.sleep(600)

async def main():
    async with get_client() as client:
        run = await client.read_flow_run(UUID(sys.argv[1]))
    await run_flow_async(crashing, flow_run=run)

asyncio.run(main())
"""


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_real_server_tells_which_start_got_on(server: str, env: dict[str, str]) -> None:
    """A run that is killed four times: by its own tasks, those starts are known that stored something."""
    flow_id = post(server, "flows/", {"name": "crashing"})["id"]
    run_id = post(server, "flow_runs/", {"flow_id": flow_id, "state": {"type": "SCHEDULED"}})["id"]
    mine = {"flow_runs": {"id": {"any_": [run_id]}}}

    def set_state(state: State) -> None:
        about = {"type": state.type.value, "name": state.name, "message": state.message}
        post(server, f"flow_runs/{run_id}/set_state", {"state": about, "force": True})

    def started(number: int, chunks: int, tasks: int) -> None:
        """One more start, killed when the server knows of all that it did."""
        process = Forked([sys.executable, "-c", STARTED, run_id, str(chunks)], cwd=ROOT, env=env)
        try:
            deadline = time.monotonic() + 120
            ended: list[dict[str, Any]] = []
            while len(ended) < tasks or post(server, "flow_runs/filter", mine)[0]["run_count"] < number:
                assert time.monotonic() < deadline, ended
                time.sleep(0.3)
                found = post(server, "task_runs/filter", mine)
                ended = [task for task in found if task["state_type"] == "COMPLETED"]
        finally:
            process.kill()
            process.wait()
        set_state(DEAD)

    def counted() -> int:
        async def look() -> int:
            async with get_client() as client:
                return (
                    await prefect_regional_diffusion.flows.reap._sight(client, await client.read_flow_run(UUID(run_id)))
                ).restarts

        with temporary_settings({PREFECT_API_URL: server}):
            return asyncio.run(look())

    started(1, chunks=2, tasks=3)
    assert counted() == 0
    set_state(AGAIN)
    started(2, chunks=0, tasks=4)
    set_state(AGAIN)
    assert counted() == 2
    started(3, chunks=1, tasks=6)
    assert counted() == 0
    set_state(AGAIN)
    assert counted() == 1
    set_state(GIVEN_UP)
    set_state(RETRY)
    set_state(DEAD)
    assert counted() == 0


class Server:
    """As much of a server as the reaper asks: runs that have crashed an hour ago, of which some sent heartbeats."""

    def __init__(self, *, broken: bool = False, kind: StateType = StateType.CRASHED, restarts: int = 0) -> None:
        self.broken, self.restarts = broken, restarts
        self.runs = [self.silent(f"run {number}", kind) for number in range(3)]
        self.ended: set[UUID] = set()
        """Runs that end by themselves between the second look and what the reaper proposes."""
        self.set: list[tuple[UUID, str]] = []
        self.messages: dict[UUID, str] = {}
        self.forced: list[str] = []

    @staticmethod
    def silent(name: str, kind: StateType) -> FlowRun:
        state = State(type=kind, name=kind.capitalize(), timestamp=datetime.now(UTC) - timedelta(hours=1))
        return FlowRun(id=uuid4(), flow_id=uuid4(), deployment_id=uuid4(), name=name, state=state, work_pool_name="gpu")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def read_work_pools(self, **_: Any) -> list[Any]:
        raise TimeoutError("no time for places in the queue")

    async def read_flow_runs(self, **_: Any) -> list[FlowRun]:
        return self.runs

    async def read_flow_run(self, run_id: UUID) -> FlowRun:
        return next(run for run in self.runs if run.id == run_id)

    async def read_flow_run_states(self, run_id: UUID) -> list[State]:
        if self.broken and run_id == self.runs[1].id:
            raise ValueError("a run that this version does not understand")
        return [AGAIN] * self.restarts

    async def read_deployment(self, _: UUID) -> SimpleNamespace:
        return SimpleNamespace(parameter_openapi_schema={"properties": {"job": {}, "name": {}}}, job_variables={})

    async def read_work_pool(self, name: str) -> SimpleNamespace:
        variables = {} if name == "gpu" else {"properties": {"command": {}}}
        return SimpleNamespace(base_job_template={"variables": variables})

    async def read_task_runs(self, **_: Any) -> list[Any]:
        return []

    async def read_events(self, found: Any, **_: Any) -> SimpleNamespace:
        has_one = str(self.runs[0].id) in str(found)
        received = datetime.now(UTC) - timedelta(hours=2)
        return SimpleNamespace(events=[SimpleNamespace(received=received)] * has_one)

    async def set_flow_run_state(self, run_id: UUID, state: State, *, force: bool = False) -> SimpleNamespace:
        if run_id in self.ended and not force:
            details = StateAbortDetails(reason="Run is already in terminal state COMPLETED.")
            return SimpleNamespace(status=SetStateStatus.ABORT, details=details)
        self.set.append((run_id, state.name or ""))
        self.messages[run_id] = state.message or ""
        self.forced += [state.name or ""] * force
        return SimpleNamespace(status=SetStateStatus.ACCEPT, details=StateAcceptDetails())


@pytest.fixture
def reaped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], dict[str, int]]:
    """What the reaper counts when it looks at a server; it does not wait for its second look."""
    monkeypatch.setattr(prefect_regional_diffusion.flows.reap, "get_run_logger", lambda: logging.getLogger("reap"))

    async def at_once(_: float) -> None: ...

    def look(server: Server) -> dict[str, int]:
        monkeypatch.setattr(prefect_regional_diffusion.flows.reap, "get_client", lambda: server)
        with monkeypatch.context() as patched:
            patched.setattr(prefect_regional_diffusion.flows.reap.asyncio, "sleep", at_once)
            return asyncio.run(reap.fn())

    return look


@pytest.mark.parametrize(("broken", "again"), [(False, {0, 1, 2}), (True, {0, 2})])
def test_a_run_that_died_before_its_first_heartbeat_is_started_again_and_costs_no_other(
    *, broken: bool, again: set[int], reaped: Callable[[Server], dict[str, int]]
) -> None:
    server = Server(broken=broken)
    assert reaped(server) == {"start again": len(again), "give up": 0, "cancel": 0, "fail": 0}
    assert server.set == [(server.runs[number].id, "AwaitingRetry") for number in sorted(again)]


@pytest.mark.parametrize(
    ("kind", "restarts", "states"),
    [
        (StateType.RUNNING, 0, ["Crashed", "AwaitingRetry"]),
        (StateType.PENDING, 4, ["Crashed", "AwaitingRetry"]),
        (StateType.RUNNING, 5, ["Crashed", "GivenUp"]),
        (StateType.CRASHED, 5, ["GivenUp"]),
        (StateType.CANCELLING, 0, ["Cancelled"]),
    ],
)
def test_a_run_that_has_ended_by_itself_meanwhile_stays_as_it_is(
    kind: StateType, restarts: int, states: list[str], reaped: Callable[[Server], dict[str, int]]
) -> None:
    """The server refuses what comes too late: nothing is done after that, and nothing is counted."""
    server = Server(kind=kind, restarts=restarts)
    if kind != StateType.CRASHED:
        server.ended = {server.runs[1].id}
    dead = [run.id for run in server.runs if run.id not in server.ended]
    assert sum(reaped(server).values()) == len(dead)
    assert server.set == [(run_id, state) for run_id in dead for state in states]
    assert server.forced == ["GivenUp"] * len(dead) * ("GivenUp" in states)


@pytest.mark.parametrize(
    ("kind", "states"),
    [(StateType.CRASHED, ["Failed"]), (StateType.PENDING, ["Crashed", "Failed"])],
)
def test_a_run_with_a_parameter_that_its_flow_has_not_fails_once_with_a_sentence(
    kind: StateType, states: list[str], reaped: Callable[[Server], dict[str, int]]
) -> None:
    """Its process ends before the flow begins, however often it is started."""
    server = Server(kind=kind)
    mistaken = server.runs[1]
    mistaken.parameters = {"job": {}, "stepz": 20}
    assert reaped(server) == {"start again": 2, "give up": 0, "cancel": 0, "fail": 1}
    assert [state for run_id, state in server.set if run_id == mistaken.id] == states
    assert server.messages[mistaken.id] == "parameters: 'stepz' is not allowed; allowed: job, name"


@pytest.mark.parametrize(("pool", "states"), [("gpu", ["Failed"]), ("of others", ["AwaitingRetry"])])
def test_a_run_that_its_worker_refuses_fails_once_with_a_sentence(
    pool: str, states: list[str], reaped: Callable[[Server], dict[str, int]]
) -> None:
    """`deployments.worker` starts nothing that brings a command to a pool that has fixed its own."""
    server = Server()
    refused = server.runs[1]
    refused.job_variables, refused.work_pool_name = {"command": "touch PWNED"}, pool
    reaped(server)
    assert [state for run_id, state in server.set if run_id == refused.id] == states
    if states == ["Failed"]:
        allowed = "none: the pool gpu has fixed them"
        assert server.messages[refused.id] == f"job_variables: 'command' is not allowed; allowed: {allowed}"
