"""Two Prefect servers on one PostgreSQL database, asked at once: no run is lost or made twice, nobody gets a 5xx."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient

from prefect_regional_diffusion.deployments.local_stack import LocalStack
from prefect_regional_diffusion.deployments.postgres import installed_programs
from prefect_regional_diffusion.flows.queueing.submission import submit_once
from tests.on_server import on_server_at
from tests.processes import prefect_server
from tests.test_postgres import served

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(installed_programs() is None, reason="needs PostgreSQL"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

JOBS = 20
AT_ONCE = 8
"""Requests to each server."""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Their addresses. The first one has made the tables before the second one starts."""
    with ExitStack() as stack:
        url = stack.enter_context(served(LocalStack(tmp_path, 4310)))
        addresses = list[str]()
        for name in ("first", "second"):
            home = tmp_path / name
            home.mkdir()
            server = prefect_server(home, PREFECT_SERVER_DATABASE_CONNECTION_URL=url)
            addresses.append(stack.enter_context(server))
        yield addresses[0], addresses[1]


def job(number: int) -> dict[str, Any]:
    return {"job": {"prompt": f"a blue background {number}"}, "name": f"job {number}"}


def test_submissions_to_both_at_once(servers: tuple[str, str]) -> None:
    """Each job is submitted to both servers by `regional submit`'s code, and each server's form is sent as often."""
    answers = Counter[int]()

    async def count(response: httpx.Response) -> None:
        answers[response.status_code // 100] += 1

    async def work(client: PrefectClient, deployment: UUID, _pool: str) -> None:
        room = {address: asyncio.Semaphore(AT_ONCE) for address in servers}
        settings = {"event_hooks": {"response": [count]}}
        async with (
            PrefectClient(servers[0], httpx_settings=settings) as first,
            PrefectClient(servers[1], httpx_settings=settings) as second,
            httpx.AsyncClient(timeout=60, event_hooks={"response": [count]}) as browser,
        ):

            async def submit(address: str, number: int) -> UUID:
                async with room[address]:
                    asked = first if address == servers[0] else second
                    return (await submit_once(asked, deployment, job(number))).run.id

            async def press_run(address: str, number: int) -> UUID:
                """As the UI does: no key, and no second try."""
                async with room[address]:
                    path = f"{address}/deployments/{deployment}/create_flow_run"
                    answer = await browser.post(path, json={"parameters": job(number), "state": {"type": "SCHEDULED"}})
                    return UUID(answer.raise_for_status().json()["id"])

            both = [(address, number) for number in range(JOBS) for address in servers]
            submitted, pressed = await asyncio.gather(
                asyncio.gather(*(submit(*one) for one in both)), asyncio.gather(*(press_run(*one) for one in both))
            )
            assert submitted[::2] == submitted[1::2]
            made = {*submitted, *pressed}
            assert len(made) == JOBS + len(both)
            for server in (first, second):
                assert {(await server.read_flow_run(run)).id for run in made} == made
        assert await client.count_flow_runs() == len(made)

    on_server_at(servers[0])(work)
    assert not answers[5], answers
