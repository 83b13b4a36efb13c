"""Which runs Prefect's worker takes from its pool: in the order of their turns, and near to the models that it holds.

Prefect's server hands out the oldest runs of a pool, at most as many as it has room for. How many that are is left to
it, and so is what a pause or a queue's own limit says; which ones is decided here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.settings import get_current_settings

from prefect_regional_diffusion.deployments.affinity import Affinity, next_question_seconds
from prefect_regional_diffusion.flows.queueing.fair_order import fair_order
from prefect_regional_diffusion.flows.queueing.place import (
    due_runs,
    last_starts,
    online_workers,
    runs_at_work_or_ended_since,
)
from prefect_regional_diffusion.flows.queueing.waiting_run import WaitingRun, waiting_run

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, WorkQueue

_COUNT_SECONDS = 60.0
"""How long a count of the pool's workers holds."""


class Dispatch:
    """What one worker takes next."""

    def __init__(self, load_seconds: float | None, held: Callable[[], frozenset[str]] = frozenset) -> None:
        """
        Args:
            load_seconds: About how long a model takes to load; None or 0: it does not matter which models are held.
            held: Names of the models and adapters that this worker has in memory, while it draws nothing.
        """
        query_seconds = get_current_settings().worker.query_seconds
        self._affinity = Affinity(load_seconds, query_seconds) if load_seconds else None
        self._next_question_time = timedelta(seconds=next_question_seconds(query_seconds))
        self._held = held
        self._workers, self._counted = 0, float("-inf")

    async def choose(
        self, client: PrefectClient, pool: str, offered: Sequence[WorkerFlowRunResponse]
    ) -> list[WorkerFlowRunResponse]:
        """As many runs of a pool as the server offers, or fewer: others than these, where their turn comes first."""
        # What the server answers was so when it was asked: it may take seconds where it is busy.
        now = datetime.now(UTC)
        pool_queues, all_due, (all_at_work, ended) = await asyncio.gather(
            client.read_work_queues(work_pool_name=pool),
            due_runs(client, pool),
            runs_at_work_or_ended_since(client, pool, now - self._next_question_time),
        )
        queues = {queue.id: queue for queue in pool_queues}
        offered_runs = {response.flow_run.id: response for response in offered}
        due = {run.id: run for run in all_due if _is_free(run, queues, offered_runs.keys())}
        at_work = [waiting_run(run) for run in all_at_work]
        waiting = [waiting_run(run, _priority(run, queues)) for run in due.values()]
        running = Counter(run.owner for run in at_work)
        # One owner takes all turns: the server need not look for the last ones.
        starts = await last_starts(client, pool) if len({run.owner for run in waiting}) > 1 else {}
        turns = fair_order(waiting, running, starts)
        chosen = await self._near(client, pool, turns, at_work, ended, now) if self._affinity else turns
        pool_id = offered[0].work_pool_id
        return [
            offered_runs.get(run.id) or _response(due[run.id], pool_id, offered[0].work_queue_id)
            for run in chosen[: len(offered)]
        ]

    async def _near(
        self,
        client: PrefectClient,
        pool: str,
        turns: list[WaitingRun],
        at_work: list[WaitingRun],
        ended: list[FlowRun],
        now: datetime,
    ) -> list[WaitingRun]:
        """The one run to take now, if there is one."""
        assert self._affinity is not None
        if time.monotonic() - self._counted > _COUNT_SECONDS:
            self._workers, self._counted = len(await online_workers(client, pool)), time.monotonic()
        models = frozenset(name for run in at_work for name in run.models)
        chosen = self._affinity.choose(
            turns, self._held(), models, _last_ends(ended), now.timestamp(), alone=self._workers <= 1
        )
        return [] if chosen is None else [chosen]


def _last_ends(ended: Sequence[FlowRun]) -> dict[str, float]:
    """When the last run with a model ended, in seconds since 1970, by the model's name."""
    ends = sorted((run.end_time.timestamp(), name) for run in ended if run.end_time for name in waiting_run(run).models)
    return {name: end for end, name in ends}


def _is_free(run: FlowRun, queues: dict[UUID, WorkQueue], offered: Collection[UUID]) -> bool:
    """Whether a run may be taken: the server offers it, or its queue is not paused and has no limit of its own."""
    queue = queues.get(run.work_queue_id) if run.work_queue_id else None
    return run.id in offered or (queue is not None and not queue.is_paused and queue.concurrency_limit is None)


def _priority(run: FlowRun, queues: dict[UUID, WorkQueue]) -> int:
    queue = queues.get(run.work_queue_id) if run.work_queue_id else None
    return (queue and queue.priority) or 1


def _response(run: FlowRun, pool: UUID, queue: UUID) -> WorkerFlowRunResponse:
    return WorkerFlowRunResponse(work_pool_id=pool, work_queue_id=run.work_queue_id or queue, flow_run=run)
