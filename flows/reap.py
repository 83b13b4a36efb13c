"""Flow `reap`: puts runs back into the queue that have crashed, or were left behind by a process that died.

It runs every minute and keeps nothing from one time to the next: if it dies, the next one does its work. A run that
sends heartbeats is never touched, whatever its state says; one that counts as dead is looked at twice.
"""

# No `from __future__ import annotations`: see flows/render.py.
import asyncio
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort
from prefect.events.filters import EventFilter
from prefect.states import AwaitingRetry, Cancelled, Crashed, Failed
from pydantic import Field

from prefect_regional_diffusion.flows.common.results import NO_RESULTS
from prefect_regional_diffusion.flows.common.run_names import MOST_NAME
from prefect_regional_diffusion.flows.queueing.run_states import GIVEN_UP, TAG
from prefect_regional_diffusion.flows.queueing.shown_places import try_to_show_places
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.text.plain_text import one_line, plain
from prefect_regional_diffusion.tasks.machine.prefect_logs import make_logs_plain
from prefect_regional_diffusion.tasks.ui.picture_events import UNKNOWN, send_picture_event

make_logs_plain()

_AGAIN = "Started again"
"""How the messages of new starts begin; they are counted by it."""

TAKEN_AWAY = "Its machine was taken away"
"""How the message begins with which a worker puts a run back: no crash, and nobody's wish either."""

STORING = ("base-only steps ", "regional steps ", "pictures ")
"""How the names of tasks begin that are done when something new is in the store, which the next start finds."""

_UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.CRASHED]
_OLDEST = timedelta(days=7)
_PAGE = 200


@dataclass(frozen=True)
class Observation:
    """State, heartbeats and restarts of a run at one moment."""

    state: StateType
    last_sign: datetime
    """When the server last heard of it: a heartbeat, or a change of state."""
    restarts: int
    """How often in a row this flow has started it again, without that it got on: see `in_vain`."""


@dataclass(frozen=True)
class LivenessTimeouts:
    """How long nothing must be heard of a run before it counts as dead."""

    running: timedelta
    """Three heartbeats at least."""
    pending: timedelta
    """Longer than any start takes: a run that is about to start sends no heartbeats."""
    crashed: timedelta
    """Longer than a worker needs to report the same crash a second time."""
    restarts: int
    """Most new starts of one run in a row, if it gets nowhere."""


Action = Literal["leave", "start again", "give up", "cancel", "fail"]


def decide(observation: Observation, now: datetime, timeouts: LivenessTimeouts) -> Action:
    """What to do with a run."""
    limits = {
        StateType.RUNNING: timeouts.running,
        StateType.CANCELLING: timeouts.running,
        StateType.PENDING: timeouts.pending,
        StateType.CRASHED: timeouts.crashed,
    }
    if observation.state not in limits or now - observation.last_sign < limits[observation.state]:
        return "leave"
    if observation.state == StateType.CANCELLING:
        return "cancel"
    return "start again" if observation.restarts < timeouts.restarts else "give up"


@flow(name="reap", persist_result=False, result_storage=NO_RESULTS)
async def reap(
    running_seconds: Annotated[float, Field(ge=45)] = 100,
    pending_seconds: Annotated[float, Field(gt=0)] = 300,
    crashed_seconds: Annotated[float, Field(ge=30)] = 60,
    second_look_seconds: Annotated[float, Field(ge=31)] = 45,
    restarts: Annotated[int, Field(ge=0, le=100)] = 5,
) -> dict[str, int]:
    """Put runs back into the queue that have crashed or were left behind. Those that wait are shown their places.

    Args:
        running_seconds: A run that has sent no heartbeat (every 30 s) for so long is dead.
        pending_seconds: So long may a start take. Raise it where machines are made for each run.
        crashed_seconds: A crash must be so old, because a worker may report it twice, half a
            minute apart if it is busy.
        second_look_seconds: Dead is who sends nothing in this time either: more than one heartbeat. The server may
            have been away before.
        restarts: Most new starts in a row of a run that stores nothing new meanwhile; after that it stays crashed, in
            a state named `GivenUp`. Who retries it by hand gives it as many again.

    Returns:
        How many runs were started again, given up, cancelled, and failed for what no start can help.
    """
    timeouts = LivenessTimeouts(
        running=timedelta(seconds=running_seconds),
        pending=timedelta(seconds=pending_seconds),
        crashed=timedelta(seconds=crashed_seconds),
        restarts=restarts,
    )
    counts: dict[str, int] = {"start again": 0, "give up": 0, "cancel": 0, "fail": 0}
    async with get_client() as client:
        suspects = await _find_suspects(client, timeouts)
        places = asyncio.create_task(try_to_show_places(client))  # beside it: it holds up no new start
        if any(observation.state != StateType.CRASHED for _, observation in suspects):
            await asyncio.sleep(second_look_seconds)
        for run, observation in suspects:
            with _errors_logged(run):
                second_look = await _sight(client, await client.read_flow_run(run.id))
                if second_look == observation:
                    action = decide(observation, datetime.now(UTC), timeouts)
                    bad_input = await _permanent_error(client, run) if action == "start again" else None
                    if bad_input is not None:
                        action = "fail"
                    if await _carry_out(client, run, action, bad_input):
                        counts[action] += 1
                        if action == "give up":
                            parameters = run.parameters or {}
                            name = one_line(parameters.get("name", ""), MOST_NAME)
                            send_picture_event("given-up", UNKNOWN, name, {"flow_run": str(run.id)})
        await places
    return counts


@contextmanager
def _errors_logged(run: FlowRun) -> Generator[None]:
    """One run that cannot be looked at, or is gone meanwhile, must not cost the others their new start."""
    try:
        yield
    except Exception:  # noqa: BLE001 - whatever it is, it is logged and the run is left
        get_run_logger().exception("%s is left as it is", plain(run.name))


async def _find_suspects(client: PrefectClient, timeouts: LivenessTimeouts) -> list[tuple[FlowRun, Observation]]:
    """All runs that seem to be dead."""
    now = datetime.now(UTC)
    unfinished = FlowRunFilter.model_validate(
        {
            "tags": {"all_": [TAG]},
            # A run without a deployment belongs to its parent, or to somebody's terminal.
            "deployment_id": {"is_null_": False},
            "state": {"type": {"any_": _UNFINISHED}, "name": {"not_any_": [GIVEN_UP]}},
            "expected_start_time": {"after_": now - _OLDEST},
        }
    )
    offset, suspects = 0, list[tuple[FlowRun, Observation]]()
    while True:
        page = await client.read_flow_runs(
            flow_run_filter=unfinished, sort=FlowRunSort.ID_DESC, limit=_PAGE, offset=offset
        )
        for run in page:
            # One without a pool is served by a process of its own, with heartbeats as slow as it likes.
            if run.work_pool_name is not None:
                with _errors_logged(run):
                    observation = await _sight(client, run)
                    if decide(observation, now, timeouts) != "leave":
                        suspects.append((run, observation))
        if len(page) < _PAGE:
            return suspects
        offset += _PAGE


async def _sight(client: PrefectClient, run: FlowRun) -> Observation:
    state = _state(run)
    heartbeats = await client.read_events(
        EventFilter.model_validate(
            {
                "event": {"name": ["prefect.flow-run.heartbeat"]},
                "resource": {"id": [f"prefect.flow-run.{run.id}"]},
                "occurred": {"since": datetime.now(UTC) - _OLDEST},
            }
        ),
        limit=1,
    )
    history = await client.read_flow_run_states(run.id)
    restarts = in_vain(history, 0)
    if restarts > 0:
        restarts = in_vain(history, await _last_productive_start(client, run))
    return Observation(
        state=state.type,
        last_sign=max([state.timestamp, *(event.received for event in heartbeats.events[:1])]),
        restarts=restarts,
    )


def in_vain(history: Sequence[State], got_on: int) -> int:
    """How often in a row this flow has started a run again, by its states in their order.

    The count begins anew when somebody retries the run by hand, and with the start (counted from 1, 0: none) that was
    the last one to store something new. So hours on machines that come and go may take any number of starts.
    """
    restarts = starts = 0
    ended = False
    for state in history:
        message = state.message or ""
        if state.type == StateType.RUNNING:
            starts += 1
            restarts = 0 if starts <= got_on else restarts
        elif message.startswith(_AGAIN):
            restarts += 1
        elif state.type == StateType.SCHEDULED and ended and not message.startswith(TAKEN_AWAY):
            restarts = 0
        ended = state.is_final()
    return restarts


async def _last_productive_start(client: PrefectClient, run: FlowRun) -> int:
    """The number of the last start of a run in which it stored something new; 0 if none did.

    It is read from the tasks' events, some of which a process that is killed may not have sent: it may be too small.
    """
    task_runs = await client.read_task_runs(
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}}),
        task_run_filter=TaskRunFilter.model_validate({"state": {"type": {"any_": [StateType.COMPLETED]}}}),
        sort=TaskRunSort.END_TIME_DESC,
        limit=_PAGE,
    )
    return max((task.flow_run_run_count for task in task_runs if task.name.startswith(STORING)), default=0)


def _state(run: FlowRun) -> State:
    if run.state is None:
        raise ValueError(f"run {run.id} has no state")
    return run.state


async def _permanent_error(client: PrefectClient, run: FlowRun) -> BadInput | None:
    """The input error of a run that fails at every start, because its process ends before the flow can report it.

    That is a parameter with a name that its flow does not know, and a variable of a pool that has fixed them all:
    Prefect's server accepts such runs, or some of them.
    """
    if run.deployment_id is None or run.work_pool_name is None:
        return None
    deployment = await client.read_deployment(run.deployment_id)
    parameters: dict[str, Any] = (deployment.parameter_openapi_schema or {}).get("properties", {})
    unknown = sorted(set(run.parameters or {}) - set(parameters))
    if parameters and unknown:
        return BadInput("parameters", unknown[0], ", ".join(parameters))
    variables = sorted({**(deployment.job_variables or {}), **(run.job_variables or {})})
    if variables:
        template = (await client.read_work_pool(run.work_pool_name)).base_job_template
        if not template.get("variables", {}).get("properties"):
            return BadInput("job_variables", variables[0], f"none: the pool {run.work_pool_name} has fixed them")
    return None


async def _carry_out(client: PrefectClient, run: FlowRun, action: Action, bad_input: BadInput | None) -> bool:
    """Take the action; False where the server refuses it, because the run has ended by itself meanwhile."""
    logger = get_run_logger()
    state = _state(run)
    previous = f"it was {state.name}, {state.message or 'no reason'}"
    logger.warning("%s: %s (%s)", action, plain(run.name), plain(previous))
    no_heartbeat = "No sign of life: its process is gone"
    if action == "cancel":
        return await _set_state(client, run, Cancelled(message=no_heartbeat))
    if action == "leave":
        return False
    if not (state.is_crashed() or await _set_state(client, run, Crashed(message=no_heartbeat))):
        return False
    if action == "start again":
        return await _set_state(client, run, AwaitingRetry(message=f"{_AGAIN}: it was left behind by a crash"))
    # The server lets a crashed run take no other end, unless it is forced to.
    if bad_input is not None:
        return await _set_state(client, run, Failed(message=str(bad_input)), force=True)
    message = (
        f"Given up after {run.run_count} starts: it crashes again and again, and stores nothing new. "
        "Retry it by hand to go on."
    )
    final_state = State(type=StateType.CRASHED, name=GIVEN_UP, message=message)
    return await _set_state(client, run, final_state, force=True)


async def _set_state(client: PrefectClient, run: FlowRun, state: State, *, force: bool = False) -> bool:
    response = await client.set_flow_run_state(run.id, state, force=force)
    if response.status != SetStateStatus.ACCEPT:
        reason = plain(getattr(response.details, "reason", None) or response.status)
        get_run_logger().warning("%s is left as it is: no %s (%s)", plain(run.name), state.name, reason)
    return response.status == SetStateStatus.ACCEPT
