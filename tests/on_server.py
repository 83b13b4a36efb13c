"""Work with the client of a Prefect server, on a deployment and a pool of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

Work = Callable[[PrefectClient, UUID, str], Awaitable[None]]
"""What is done with a client, the id of a deployment and the name of its pool."""

OnServer = Callable[[Work], None]


def on_server_at(api: str) -> OnServer:
    """Does work on the server at an address."""

    async def start(work: Work) -> None:
        async with get_client() as client:
            pool = f"pool-{uuid4().hex[:8]}"
            await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            flow = await client.create_flow_from_name(f"flow-{uuid4().hex[:8]}")
            deployment = await client.create_deployment(flow_id=flow, name="x", work_pool_name=pool, tags=["regional"])
            await work(client, deployment, pool)

    def run(work: Work) -> None:
        with temporary_settings({PREFECT_API_URL: api}):
            asyncio.run(start(work))

    return run
