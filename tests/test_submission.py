"""Asking for a picture: each job has one run, and a run that waits has a place. On a real server, without workers."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Crashed, Failed, Running

from prefect_regional_diffusion.flows.queueing.place import Place, place_of, queue_priorities, seconds_until_begin
from prefect_regional_diffusion.flows.queueing.run_states import GIVEN_UP
from prefect_regional_diffusion.flows.queueing.submission import submit_once
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from tests.on_server import OnServer

JOB: dict[str, Any] = {"job": {"prompt": "a red circle"}, "name": "one"}


@pytest.mark.e2e
def test_the_same_job_has_one_run(on_server: OnServer) -> None:
    async def work(client: PrefectClient, deployment: UUID, pool: str) -> None:
        first, is_new = await submit_once(client, deployment, JOB, owner="ann")
        assert is_new
        assert set(first.tags) == {"regional", "owner:ann"}
        # The key is what a program can compute that asks the API itself.
        assert first.idempotency_key == content_hash(JOB)
        for owner in ("ann", "bob"):
            found, is_new = await submit_once(client, deployment, JOB, owner=owner)
            assert (found.id, is_new) == (first.id, False)
        other, is_new = await submit_once(client, deployment, JOB | {"name": "two"})
        assert is_new
        assert other.id != first.id
        again, is_new = await submit_once(client, deployment, JOB, again=True)
        assert is_new
        assert again.id not in (first.id, other.id)

    on_server(work)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("state", "is_new"),
    [
        (Running(), False),
        (Completed(), False),
        (Crashed(), False),  # the reaper starts it again
        (Failed(), True),
        (Cancelled(), True),
        (Crashed(name=GIVEN_UP), True),
    ],
    ids=["running", "completed", "crashed", "failed", "cancelled", "given up"],
)
def test_a_run_without_a_result_gets_one_successor(state: State, is_new: bool, on_server: OnServer) -> None:
    async def work(client: PrefectClient, deployment: UUID, pool: str) -> None:
        first = (await submit_once(client, deployment, JOB)).run
        await client.set_flow_run_state(first.id, state, force=True)
        submissions = await asyncio.gather(*(submit_once(client, deployment, JOB) for _ in range(4)))
        (run,) = {submission.run.id for submission in submissions}
        assert (run != first.id) == is_new
        assert sum(submission.is_new for submission in submissions) == is_new

    on_server(work)


@pytest.mark.e2e
def test_a_place_is_that_of_the_turn(on_server: OnServer) -> None:
    async def work(client: PrefectClient, deployment: UUID, pool: str) -> None:
        async def submit(name: str, owner: str, queue: str | None = None) -> FlowRun:
            return (await submit_once(client, deployment, {"name": name}, owner=owner, queue=queue)).run

        many = [await submit(f"many {number}", "many") for number in range(3)]
        few = await submit("few", "few")

        async def places(*runs: FlowRun) -> list[int | None]:
            found = [await place_of(client, run.id, pool) for run in runs]
            return [place and place.position for place in found]

        assert await places(*many, few) == [1, 3, 4, 2]
        place = await place_of(client, few.id, pool)
        assert place == Place(2, 4, workers=0, seconds=None)
        assert str(place) == "Waits, 2 of 4: no worker is there"
        # At work: not waiting any more, and its owner has had a turn.
        await client.set_flow_run_state(many[0].id, Running(), force=True)
        assert await places(many[0], few, many[1], many[2]) == [None, 1, 2, 3]
        # A queue with a better priority goes before turns.
        urgent = await submit("urgent", "many", queue="urgent")
        for name, priority in {"urgent": 1, "default": 2}.items():
            found = await client.read_work_queue_by_name(name, pool)
            await client.update_work_queue(found.id, priority=priority)
        assert await queue_priorities(client, pool) == {"urgent": 1, "default": 2}
        assert await places(urgent, few) == [1, 2]

    on_server(work)


def test_the_wait_is_that_of_those_before() -> None:
    assert seconds_until_begin(1, running=0, workers=1, durations=[10.0]) == 0
    assert seconds_until_begin(1, running=1, workers=1, durations=[10.0, 12.0, 60.0]) == 6
    assert seconds_until_begin(5, running=2, workers=2, durations=[10.0]) == 25
    assert seconds_until_begin(3, running=1, workers=0, durations=[10.0]) is None
    assert seconds_until_begin(3, running=1, workers=1, durations=[]) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "about 5 s"),
        (47.0, "about 45 s"),
        (95.0, "about 2 min"),
        (3000.0, "about 50 min"),
        (9000.0, "about 2.5 h"),
    ],
)
def test_an_estimate_is_rounded(seconds: float, text: str) -> None:
    assert str(Place(1, 2, 1, seconds)).endswith(text)
