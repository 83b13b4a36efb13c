"""Places of waiting runs as artifacts: what they say, how much is written at once, and on a real server."""

from __future__ import annotations

from datetime import UTC
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import Artifact
from prefect.states import Running
from prefect.types._datetime import DateTime

from prefect_regional_diffusion.flows.queueing.place import Place
from prefect_regional_diffusion.flows.queueing.shown_places import (
    KEY,
    MOST_WRITES,
    Change,
    due_changes,
    show_places,
    words,
)
from prefect_regional_diffusion.flows.queueing.submission import submit_once
from tests.on_server import OnServer


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (Place(1, 9, 2, 0.0), "This run is **next**, about 5 s."),
        (Place(2, 9, 2, 42.0), "**1 run** before this one, about 40 s."),
        (Place(9, 9, 2, 700.0), "**8 runs** before this one, about 12 min."),
        (Place(9, 9, 2, None), "**8 runs** before this one."),
        (Place(1, 9, 0, None), "Waits: **no worker is there** to draw it."),
        (Place(138, 500, 2, 3500.0), "**about 140 runs** before this one, about 60 min."),
    ],
)
def test_a_place_in_words(place: Place, text: str) -> None:
    assert words(place) == text


def said(run: UUID, text: str, minute: int) -> Artifact:
    at = DateTime(2026, 1, 1, 0, minute, tzinfo=UTC)
    return Artifact(id=uuid4(), flow_run_id=run, key=KEY, data=f"{text}\n\nAs of {at}.", updated=at)


def test_far_behind_a_start_changes_few_texts() -> None:
    """One of 500 begins: the others move up by one place."""
    before, after = (
        [words(Place(position, 500, 2, 30.0 * position)) for position in range(first, first + 500)] for first in (2, 1)
    )
    assert sum(one != two for one, two in zip(before, after, strict=True)) < 20 + 2 * 48 + 10


def test_a_pass_writes_so_many_texts_those_next_first_and_nobody_is_forgotten() -> None:
    runs = [uuid4() for _ in range(200)]
    shown = dict[UUID, Artifact]()
    for minute in range(12):
        wanted = [Change(run, f"{place} in minute {minute}", place <= 20) for place, run in enumerate(runs, 1)]
        changes = due_changes(wanted, shown)
        assert len(changes) == MOST_WRITES
        assert {change.run for change in changes} >= set(runs[:20])
        shown |= {change.run: said(change.run, change.text, minute) for change in changes}
        # Five passes are enough for all: 20 that are next, and 40 others in each.
        told = [artifact.updated.minute for artifact in shown.values() if artifact.updated]
        assert len(told) == min(200, 60 + 40 * minute)
        assert min(told) >= minute - 4


def test_what_is_said_already_is_not_written_again() -> None:
    run = uuid4()
    change = Change(run, "This run is **next**.", is_next=True)
    assert due_changes([change], {run: said(run, change.text, 1)}) == []
    assert due_changes([change], {run: said(run, "**1 run** before this one.", 1)}) == [change]


@pytest.mark.e2e
def test_a_run_that_waits_says_its_place_until_it_begins(on_server: OnServer) -> None:
    async def work(client: PrefectClient, deployment: UUID, pool: str) -> None:
        await client.send_worker_heartbeat(pool, "x", heartbeat_interval_seconds=3600)
        runs = list[UUID]()
        for name in ("first", "second", "third"):
            parameters: dict[str, Any] = {"job": {"prompt": name}, "name": name}
            runs.append((await submit_once(client, deployment, parameters, owner="ann")).run.id)

        async def places() -> list[Artifact | None]:
            """What the runs' artifacts are, after a pass."""
            await show_places(client)
            artifacts = await client.read_artifacts(
                artifact_filter=ArtifactFilter.model_validate({"key": {"any_": [KEY]}}),
                flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": runs}}),
            )
            found = {artifact.flow_run_id: artifact for artifact in artifacts}
            assert len(found) == len(artifacts), "a run has one"
            return [found.get(run) for run in runs]

        def lines(artifacts: list[Artifact | None]) -> list[str]:
            return [str(artifact.data).partition("\n")[0] if artifact else "" for artifact in artifacts]

        first_look = await places()
        told = ["This run is **next**.", "**1 run** before this one.", "**2 runs** before this one."]
        assert lines(first_look) == told
        # Nothing has changed, and so nothing is written.
        assert await places() == first_look
        await client.set_flow_run_state(runs[0], Running(), force=True)
        second_look = await places()
        assert lines(second_look) == ["", *told[:2]]
        assert [one and one.id for one in second_look[1:]] == [one and one.id for one in first_look[1:]]
        for artifact in filter(None, second_look[1:2]):
            await client.delete_artifact(artifact.id)
        assert lines(await places()) == ["", *told[:2]]

    on_server(work)
