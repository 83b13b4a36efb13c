"""What a worker takes from a real server's pool: turns, models that it holds, pauses and limits. No run is started."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.states import Completed, Running, Scheduled

from prefect_regional_diffusion.deployments.dispatch import Dispatch
from prefect_regional_diffusion.flows.queueing.submission import submit_once
from tests.on_server import OnServer

pytestmark = pytest.mark.e2e


class Pool:
    """A pool with a worker that never starts what it takes."""

    def __init__(self, client: PrefectClient, deployment: UUID, pool: str, load_seconds: float | None = None) -> None:
        self.client, self.deployment, self.pool = client, deployment, pool
        self.held = frozenset[str]()
        self.dispatch = Dispatch(load_seconds, lambda: self.held)
        self.names: dict[UUID, str] = {}

    async def submit(self, name: str, owner: str = "", model: str = "a", queue: str | None = None) -> UUID:
        parameters: dict[str, Any] = {"job": {"prompt": name, "model": model}}
        run, _ = await submit_once(self.client, self.deployment, parameters, owner=owner, queue=queue)
        self.names[run.id] = name
        return run.id

    async def start(self, run: UUID) -> None:
        """The worker, or another one, gets a run and starts it."""
        await self.client.set_flow_run_state(run, Running(), force=True)

    async def take(self) -> list[str]:
        """The names of the runs that the worker takes now, as if it had room for all."""
        offered = await self.client.get_scheduled_flow_runs_for_work_pool(work_pool_name=self.pool)
        chosen = await self.dispatch.choose(self.client, self.pool, offered) if offered else []
        return [self.names[response.flow_run.id] for response in chosen]


def test_owners_take_turns_also_where_the_server_shows_one_run(on_server: OnServer) -> None:
    async def work(client: PrefectClient, deployment: UUID, name: str) -> None:
        pool = Pool(client, deployment, name)
        first = await pool.submit("many 1", "many")
        for run in ("many 2", "many 3"):
            await pool.submit(run, "many")
        await pool.submit("few 1", "few")
        assert await pool.take() == ["many 1", "few 1", "many 2", "many 3"]
        await client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=2))
        await client.set_flow_run_state(first, Running(), force=True)
        # Prefect would take the second of many: one slot is left, and it is the oldest.
        offered = await client.get_scheduled_flow_runs_for_work_pool(work_pool_name=name)
        assert [pool.names[response.flow_run.id] for response in offered] == ["many 2"]
        assert await pool.take() == ["few 1"]

    on_server(work)


def test_what_is_paused_or_has_a_limit_is_left_to_the_server(on_server: OnServer) -> None:
    async def work(client: PrefectClient, deployment: UUID, name: str) -> None:
        pool = Pool(client, deployment, name)
        await pool.submit("paused", "x", queue="paused")
        limited = [await pool.submit(f"limited {number}", "y", queue="limited") for number in (1, 2)]
        await pool.submit("free", "z")
        queues = {queue.name: queue.id for queue in await client.read_work_queues(work_pool_name=name)}
        await client.update_work_queue(queues["paused"], is_paused=True)
        await client.update_work_queue(queues["limited"], concurrency_limit=1)
        assert sorted(await pool.take()) == ["free", "limited 1"]
        await client.set_flow_run_state(limited[0], Running(), force=True)
        assert await pool.take() == ["free"]

    on_server(work)


def test_a_worker_stays_with_its_models(on_server: OnServer) -> None:
    async def work(client: PrefectClient, deployment: UUID, name: str) -> None:
        pool = Pool(client, deployment, name, load_seconds=1000.0)
        runs = {run: await pool.submit(run, model=run[0]) for run in ("a 1", "b 1", "c 1", "a 2", "b 2")}
        assert await pool.take() == ["a 1"]
        pool.held = frozenset("b")
        assert await pool.take() == ["b 1"]
        pool.held = frozenset("bc")
        await pool.start(runs["b 1"])
        assert await pool.take() == ["c 1"], "the first one of those whose model is there"
        for run in ("b 2", "c 1"):
            await pool.start(runs[run])
        # Nobody else is there: the other model's runs are not left to them.
        assert await pool.take() == ["a 1"]
        pool.held = frozenset()
        assert await pool.take() == ["a 1"]

    on_server(work)


def test_a_run_is_left_to_who_has_just_drawn_with_its_model(on_server: OnServer) -> None:
    """By workers as well that have seen nothing of it, as they were at work themselves."""

    async def work(client: PrefectClient, deployment: UUID, name: str) -> None:
        for worker in ("this one", "another"):
            await client.send_worker_heartbeat(name, worker)
        pool = Pool(client, deployment, name, load_seconds=1000.0)
        pool.held = frozenset("b")
        first, second = [await pool.submit(run, model="a") for run in ("a 1", "a 2")]
        long_ago = datetime.now(UTC) - timedelta(hours=2)
        await client.set_flow_run_state(second, Scheduled(scheduled_time=long_ago), force=True)
        assert await pool.take() == ["a 2"]
        await pool.start(first)
        await client.set_flow_run_state(first, Completed(), force=True)
        assert await pool.take() == []

    on_server(work)
