"""The places of waiting runs on their pages in the UI, for those who have no command line: an artifact of each run.

All is looked up anew each time, so nothing is lost with the process that does it. What a pass writes is bounded: the
next few runs are told exactly, the others roughly, so that a start does not change hundreds of texts.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from prefect_regional_diffusion.flows.queueing.durations import estimated
from prefect_regional_diffusion.flows.queueing.place import Place, queue_of
from prefect_regional_diffusion.flows.queueing.run_states import TAG
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.secrets import reason_of

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import Artifact

logger = plain_logger(__name__)

KEY = "place"
"""Of the artifact."""

MOST_WRITES = 60
"""In one pass: some two seconds of a server."""
_NEXT = 20
"""So many runs of a pool are told exactly."""
_PAGE = 200
_PAGES = 10
_LONG = 1800.0
"""Seconds of a wait that is told to ten minutes."""


class Change(NamedTuple):
    """What the artifact of a run is to say."""

    run: UUID
    text: str
    is_next: bool
    """Whether the run is one of those that are told exactly."""


def words(place: Place) -> str:
    """A place as Markdown, without the time: it changes when there is something new."""
    before = place.position - 1
    rough = place.position > _NEXT
    if not place.workers:
        return "Waits: **no worker is there** to draw it."
    number = f"about {10 * round(before / 10)}" if rough else str(before)
    runs = "This run is **next**" if not before else f"**{number} run{'s' * (before != 1)}** before this one"
    if place.seconds is None:
        return f"{runs}."
    seconds = 600 * round(place.seconds / 600) if place.seconds > _LONG else place.seconds
    return f"{runs}, about {estimated(seconds)}."


async def try_to_show_places(client: PrefectClient, seconds: float = 20.0) -> None:
    """Show them, as far as that is done in time: it must not hold up whoever has more important things to do."""
    try:
        await asyncio.wait_for(show_places(client), seconds)
    except Exception as error:  # noqa: BLE001 - whatever it is, the next pass does it
        logger.warning("places in the queue are not shown: %s", reason_of(error))


async def show_places(client: PrefectClient) -> int:
    """Bring the artifacts of waiting runs up to date, and remove those of runs that wait no more; returns how many."""
    from prefect.exceptions import ObjectNotFound

    wanted = list[Change]()
    for pool in await client.read_work_pools(limit=_PAGE):
        queue = await queue_of(client, pool.name)
        for position, run in enumerate(queue.order, 1):
            if TAG in queue.due[run.id].tags:
                wanted.append(Change(run.id, words(queue.place(position)), position <= _NEXT))
    shown = await _shown(client)
    waiting = {change.run for change in wanted}
    changes = due_changes(wanted, shown)
    for change in changes:
        with suppress(ObjectNotFound):  # somebody has removed the run, or its artifact
            await _write(client, change, shown.get(change.run))
    gone = [artifact for run, artifact in shown.items() if run not in waiting][:MOST_WRITES]
    for artifact in gone:
        with suppress(ObjectNotFound):
            await client.delete_artifact(artifact.id)
    return len(changes) + len(gone)


def due_changes(wanted: list[Change], shown: dict[UUID, Artifact]) -> list[Change]:
    """What is to be written now: of runs that are next, and then of those that have not been told for longest."""

    def last_told(change: Change) -> float:
        artifact = shown.get(change.run)
        return artifact.updated.timestamp() if artifact and artifact.updated else 0.0

    changed = [change for change in wanted if _said(shown.get(change.run)) != change.text]
    return sorted(changed, key=lambda change: (not change.is_next, last_told(change)))[:MOST_WRITES]


def _said(artifact: Artifact | None) -> str:
    """What an artifact says, without the time."""
    return str(artifact.data).partition("\n")[0] if artifact else ""


async def _shown(client: PrefectClient) -> dict[UUID, Artifact]:
    """The artifacts that there are, by run."""
    from prefect.client.schemas.filters import ArtifactFilter
    from prefect.client.schemas.sorting import ArtifactSort

    found: dict[UUID, Artifact] = {}
    for page in range(_PAGES):
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter.model_validate({"key": {"any_": [KEY]}}),
            sort=ArtifactSort.ID_DESC,
            limit=_PAGE,
            offset=page * _PAGE,
        )
        found |= {artifact.flow_run_id: artifact for artifact in artifacts if artifact.flow_run_id}
        if len(artifacts) < _PAGE:
            break
    return found


async def _write(client: PrefectClient, change: Change, artifact: Artifact | None) -> None:
    from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

    text = f"{change.text}\n\nAs of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    if artifact is None:
        made = ArtifactCreate(
            key=KEY, type="markdown", data=text, description="Place in the queue", flow_run_id=change.run
        )
        await client.create_artifact(made)
    else:
        await client.update_artifact(artifact.id, ArtifactUpdate(data=text))
