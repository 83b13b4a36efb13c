"""CSRF tokens of many clients, which are too old at the same moment: as after a machine's sleep."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from prefect.client.orchestration import PrefectClient

from prefect_regional_diffusion.deployments.postgres import installed_programs
from prefect_regional_diffusion.deployments.token_requests import OneTokenAtATime
from tests.machine import Machine

CLIENTS, ROUNDS = 12, 5


def test_a_token_waits_for_the_one_before_it_and_nothing_else_waits() -> None:
    at_work: dict[str, int] = {}
    most = dict[str, int]()

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        path = scope["path"]
        at_work[path] = at_work.get(path, 0) + 1
        most[path] = max(most.get(path, 0), at_work[path])
        await asyncio.sleep(0.01)
        at_work[path] -= 1
        if scope["query_string"] == b"client=broken":
            raise ConnectionError

    async def ask_at_once() -> list[BaseException | None]:
        guarded: Any = OneTokenAtATime(app)
        scopes = [
            {"type": "http", "path": path, "query_string": query}
            for path in ("/api/csrf-token", "/api/flow_runs/filter")
            for query in (b"client=a", b"client=broken", b"client=b")
        ]
        return await asyncio.gather(*(guarded(scope, None, None) for scope in scopes), return_exceptions=True)

    answers = asyncio.run(ask_at_once())
    assert most == {"/api/csrf-token": 1, "/api/flow_runs/filter": 3}
    assert [type(answer) for answer in answers] == [type(None), ConnectionError, type(None)] * 2


@pytest.mark.e2e
@pytest.mark.xdist_group("machine")
@pytest.mark.skipif(installed_programs() is None, reason="needs PostgreSQL")
def test_clients_whose_tokens_are_too_old_at_once_all_get_new_ones(machine: Machine) -> None:
    """They are asked for beside the workers of `make up`, whose tokens are too old as well."""
    log = machine.folder / "database.log"
    deadlocks_before = log.read_text().count("deadlock detected")

    async def renew() -> None:
        async with AsyncExitStack() as stack:
            database: Any = await asyncpg.connect(
                host=str(machine.folder / "postgres"), user="prefect", database="postgres"
            )
            stack.push_async_callback(database.close)
            clients = [
                await stack.enter_async_context(PrefectClient(machine.api, auth_string=machine.auth_string))
                for _ in range(CLIENTS)
            ]
            for _ in range(ROUNDS):
                await asyncio.gather(*(client.read_work_pools() for client in clients))
                changed = await database.execute("UPDATE csrf_token SET expiration = now() - interval '1 hour'")
                assert int(changed.removeprefix("UPDATE ")) >= CLIENTS
                for client in clients:
                    client._client.csrf_token_expiration = datetime.now(UTC) - timedelta(hours=1)
            await asyncio.gather(*(client.read_work_pools() for client in clients))

    asyncio.run(renew())
    assert log.read_text().count("deadlock detected") == deadlocks_before
