"""The place of a run among those that wait in its pool, and how long it may take until it begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from prefect_regional_diffusion.flows.queueing.durations import estimated
from prefect_regional_diffusion.flows.queueing.fair_order import fair_order
from prefect_regional_diffusion.flows.queueing.waiting_run import WaitingRun, owner_of, waiting_run

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

_PAGE = 200
"""Most runs that a server names at once."""

_PAGES = 5
"""Beyond so many pages nobody's place is counted."""

_AT_WORK = {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}


class Place(NamedTuple):
    """Where a run stands in its pool."""

    position: int
    """1: it is next."""
    waiting: int
    """Runs that are due in the pool, with this one."""
    workers: int
    """That are there, at work or not. 0: nobody takes any run."""
    seconds: float | None
    """About, until it begins; None where nothing has ended in the pool to judge by."""

    def __str__(self) -> str:
        if not self.workers:
            return f"Waits, {self.position} of {self.waiting}: no worker is there"
        about = "" if self.seconds is None else f", about {estimated(self.seconds)}"
        return f"Waits, {self.position} of {self.waiting}{about}"


def seconds_until_begin(position: int, running: int, workers: int, durations: Sequence[float]) -> float | None:
    """About how long until a run begins.

    Those before it, and half of each that is at work, are shared by the workers; each takes as long as the runs that
    ended last (their median).
    """
    if not durations or not workers:
        return None
    if position == 1 and running < workers:
        return 0.0
    return median(durations) * (position - 1 + min(running, workers) / 2) / workers


async def due_runs(client: PrefectClient, pool: str) -> list[FlowRun]:
    """The runs that wait in a pool and are due, the oldest first; at most a thousand."""
    now = datetime.now(UTC) + timedelta(seconds=1)
    return await _runs(
        client, pool, {"state": {"type": {"any_": ["SCHEDULED"]}}, "next_scheduled_start_time": {"before_": now}}
    )


async def runs_at_work(client: PrefectClient, pool: str) -> list[FlowRun]:
    """The runs that a worker of a pool has taken."""
    return await _runs(client, pool, {"state": _AT_WORK})


async def runs_at_work_or_ended_since(
    client: PrefectClient, pool: str, moment: datetime
) -> tuple[list[FlowRun], list[FlowRun]]:
    """The runs that a worker of a pool has taken, and those that have ended since a moment."""
    criteria = {"operator": "or_", "state": _AT_WORK, "end_time": {"after_": moment}}
    runs = [(run, run.state is not None and run.state.is_final()) for run in await _runs(client, pool, criteria)]
    return [run for run, has_ended in runs if not has_ended], [run for run, has_ended in runs if has_ended]


async def last_starts(client: PrefectClient, pool: str) -> dict[str, float]:
    """When the last run of each owner began in a pool, in seconds since 1970, as far as the newest 50 runs tell."""
    begun = {"state": {"type": {"any_": ["RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}
    runs = await _newest(client, pool, begun, "START_TIME_DESC", 50)
    return {owner_of(run.tags): run.start_time.timestamp() for run in reversed(runs) if run.start_time}


class Queue(NamedTuple):
    """The runs of a pool at one moment."""

    order: list[WaitingRun]
    """Those that wait, in the order of their turns."""
    due: dict[UUID, FlowRun]
    """The same, as the server knows them."""
    at_work: list[FlowRun]
    workers: list[str]
    """Names of those that are there."""
    durations: list[float]
    """Seconds that the runs took which completed last."""

    def place(self, position: int) -> Place:
        """Of the run at a position, counted from 1."""
        workers = len(self.workers)
        seconds = seconds_until_begin(position, len(self.at_work), workers, self.durations)
        return Place(position, len(self.order), workers, seconds)


async def queue_of(client: PrefectClient, pool: str) -> Queue:
    """What waits in a pool and what is at work, as the server knows them now."""
    due, at_work = await due_runs(client, pool), await runs_at_work(client, pool)
    priorities = await queue_priorities(client, pool)
    order = fair_order(
        (waiting_run(run, priorities.get(run.work_queue_name or "", 1)) for run in due),
        Counter(owner_of(run.tags) for run in at_work),
        await last_starts(client, pool),
    )
    workers, durations = await online_workers(client, pool), await _last_durations(client, pool)
    return Queue(order, {run.id: run for run in due}, at_work, workers, durations)


async def place_of(client: PrefectClient, run: UUID, pool: str) -> Place | None:
    """The place of a run in a pool, or None once it is not waiting any more."""
    queue = await queue_of(client, pool)
    position = next((number for number, other in enumerate(queue.order, 1) if other.id == run), None)
    return None if position is None else queue.place(position)


async def queue_priorities(client: PrefectClient, pool: str) -> dict[str, int]:
    """The priorities of a pool's work queues, by name; 1 goes first."""
    return {queue.name: queue.priority or 1 for queue in await client.read_work_queues(work_pool_name=pool)}


async def online_workers(client: PrefectClient, pool: str) -> list[str]:
    """The names of a pool's workers that send heartbeats."""
    workers = await client.read_workers_for_work_pool(pool, limit=_PAGE)
    return [worker.name for worker in workers if str(getattr(worker.status, "value", worker.status)) == "ONLINE"]


async def _runs(client: PrefectClient, pool: str, criteria: dict[str, Any]) -> list[FlowRun]:
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.client.schemas.sorting import FlowRunSort

    found: list[FlowRun] = []
    for page in range(_PAGES):
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(criteria),
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=_PAGE,
            offset=page * _PAGE,
        )
        found += runs
        if len(runs) < _PAGE:
            break
    return found


async def _last_durations(client: PrefectClient, pool: str) -> list[float]:
    """Seconds that the runs took which completed last in a pool."""
    runs = await _newest(client, pool, {"state": {"type": {"any_": ["COMPLETED"]}}}, "END_TIME_DESC", 10)
    return [run.total_run_time.total_seconds() for run in runs]


async def _newest(client: PrefectClient, pool: str, criteria: dict[str, Any], sort: str, limit: int) -> list[FlowRun]:
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.client.schemas.sorting import FlowRunSort

    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(criteria),
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
        sort=FlowRunSort(sort),
        limit=limit,
    )
