"""What the pools of a server do now: runs at work, runs that wait in the order of their turns, workers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from prefect_regional_diffusion.flows.queueing.place import queue_of
from prefect_regional_diffusion.flows.queueing.run_states import UPKEEP
from prefect_regional_diffusion.flows.queueing.waiting_run import WaitingRun, waiting_run
from prefect_regional_diffusion.sampling_core.text.plain_text import one_line
from prefect_regional_diffusion.tasks.ui.progress_words import PROGRESS, steps_in

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import Artifact, FlowRun

_PAGE = 200
_EVENTS = 50
"""Most events that a server tells at once."""
_MOST_NAME = 200
_SUBMITTED = "prefect.worker.submitted-flow-run"
"""Event of Prefect's workers: its resource is the worker."""


class RunAtWork(NamedTuple):
    """A run that a worker has taken."""

    id: UUID
    name: str
    owner: str
    """Empty: nobody in particular."""
    models: tuple[str, ...]
    state: str
    worker: str
    """Its name; empty if the server does not know of it (any more)."""
    progress: str
    """What its progress bar says; empty: it has none yet."""
    steps: tuple[int, int] | None
    """Finished ones and all, where that is what the bar says."""
    seconds: float
    """Since it began or, where it is about to, since it was taken."""


class RunThatWaits(NamedTuple):
    """A run that is due."""

    id: UUID
    name: str
    owner: str
    models: tuple[str, ...]
    place: int
    """1: it is next."""
    seconds_left: float | None
    """About, until it begins; None where there is nothing to judge by."""
    seconds: float
    """For which it has been due."""


class PoolOverview(NamedTuple):
    """A work pool at one moment."""

    name: str
    is_paused: bool
    workers: tuple[str, ...]
    """Names of those that are there, at work or not."""
    at_work: tuple[RunAtWork, ...]
    """The longest first; without upkeep, as below."""
    waiting: tuple[RunThatWaits, ...]
    """In the order of their turns."""


class Overview:
    """Looks at a server, as often as it is asked, and remembers which worker has taken which run."""

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._workers: dict[tuple[UUID, int], str] = {}
        """By run and number of its start."""

    async def pools(self, names: Collection[str] = ()) -> list[PoolOverview]:
        """The pools of these names, or all that have workers or runs.

        Raises ObjectNotFound for a name that no pool has.
        """
        found = [await self._client.read_work_pool(name) for name in names]
        overviews = [
            await self._pool(pool.name, is_paused=pool.is_paused)
            for pool in found or await self._client.read_work_pools(limit=_PAGE)
        ]
        return [pool for pool in overviews if names or pool.workers or pool.at_work or pool.waiting]

    async def _pool(self, name: str, *, is_paused: bool) -> PoolOverview:
        queue = await queue_of(self._client, name)
        taken = [run for run in queue.at_work if UPKEEP not in run.tags]
        workers, bars = await self._worker_names(taken), await self._bars(taken)
        now = datetime.now(UTC)
        at_work = (_at_work(run, workers.get(run.id, ""), bars.get(run.id, ""), now) for run in taken)
        waiting = (
            _that_waits(run, queue.due[run.id], position, queue.place(position).seconds, now)
            for position, run in enumerate(queue.order, 1)
            if UPKEEP not in queue.due[run.id].tags
        )
        return PoolOverview(
            name=name,
            is_paused=is_paused,
            workers=tuple(sorted(queue.workers)),
            at_work=tuple(sorted(at_work, key=lambda run: -run.seconds)),
            waiting=tuple(waiting),
        )

    async def _worker_names(self, runs: Iterable[FlowRun]) -> dict[UUID, str]:
        """The workers that have taken these runs, by run, as far as they have told."""
        from prefect.events.filters import EventFilter

        starts = {f"prefect.flow-run.{run.id}": (run.id, run.run_count) for run in runs}
        self._workers = {start: self._workers[start] for start in starts.values() if start in self._workers}
        unknown = [run for run, start in starts.items() if start not in self._workers]
        # A run that was started again has several, the newest of which counts: it comes first.
        for first in range(0, len(unknown), _EVENTS // 2):
            criteria = {"event": {"name": [_SUBMITTED]}, "related": {"id": unknown[first : first + _EVENTS // 2]}}
            page = await self._client.read_events(EventFilter.model_validate(criteria), limit=_EVENTS)
            for event in page.events:
                for start in (starts[resource.id] for resource in event.related if resource.id in starts):
                    self._workers.setdefault(start, one_line(event.resource.name or "", _MOST_NAME))
        return {run: self._workers.get((run, number), "") for run, number in starts.values()}

    async def _bars(self, runs: Iterable[FlowRun]) -> dict[UUID, str]:
        """What the progress bars of runs say, by run."""
        from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter

        ids = [run.id for run in runs]
        artifacts: list[Artifact] = []
        for first in range(0, len(ids), _PAGE):
            artifacts += await self._client.read_artifacts(
                artifact_filter=ArtifactFilter.model_validate({"key": {"any_": [PROGRESS]}}),
                flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": ids[first : first + _PAGE]}}),
            )
        # A run that was started again has several.
        oldest_first = sorted(artifacts, key=lambda artifact: artifact.created or datetime.min.replace(tzinfo=UTC))
        return {one.flow_run_id: one.description or "" for one in oldest_first if one.flow_run_id}


def _at_work(run: FlowRun, worker: str, words: str, now: datetime) -> RunAtWork:
    known = waiting_run(run)
    since = run.state.timestamp if run.state else now
    return RunAtWork(
        id=run.id,
        name=_name(run, has_begun=run.start_time is not None),
        owner=known.owner,
        models=_models(known),
        state=run.state_name or "",
        worker=worker,
        progress=words,
        steps=steps_in(words),
        seconds=max((now - since).total_seconds(), 0.0),
    )


def _that_waits(known: WaitingRun, run: FlowRun, place: int, seconds_left: float | None, now: datetime) -> RunThatWaits:
    return RunThatWaits(
        id=run.id,
        name=_name(run, has_begun=False),
        owner=known.owner,
        models=_models(known),
        place=place,
        seconds_left=seconds_left,
        seconds=max(now.timestamp() - known.due, 0.0),
    )


def _name(run: FlowRun, *, has_begun: bool) -> str:
    """What people call a run; until it has begun, Prefect calls it by two words of its own."""
    asked_for = "" if has_begun else (run.parameters or {}).get("name")
    return one_line(asked_for or run.name, _MOST_NAME)


def _models(run: WaitingRun) -> tuple[str, ...]:
    return tuple(sorted(run.models))
