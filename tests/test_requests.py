"""How often a run asks its server: each request is one that somebody sees something of."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.flows.shard import shard
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.tasks.ui import artifacts
from tests.processes import post

pytestmark = pytest.mark.e2e

JOB = {"prompt": "a blue background", "width": 64, "height": 64, "steps": 2, "sampler": "euler"}
BUSY = 503
"""Prefect's client asks again: how often depends on who else writes to SQLite."""
ONCE_A_PROCESS = "/api/admin/version"
BY_PREFECT = {
    # Of a new client: whether the server wants a token.
    "GET csrf-token": 1,
    # A worker's run is there already.
    "POST flows": 1,
    "POST flow_runs": 1,
    # Its name, which is that of the picture.
    "PATCH flow_runs/ID": 1,
    # Running, and what it is read back as; Completed.
    "POST flow_runs/ID/set_state": 2,
    "GET flow_runs/ID": 1,
}


@pytest.fixture
def requests(server: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """What runs ask the running server from now on, without ids. The progress bar moves at the end alone.

    Prefect's threads, which send logs and events in batches, are not counted: no run waits for them.
    """
    asked: Counter[str] = Counter()

    def count(response: httpx.Response) -> None:
        if response.status_code != BUSY and threading.current_thread() is threading.main_thread():
            path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", response.request.url.path)
            if path != ONCE_A_PROCESS:
                asked[f"{response.request.method} {path.removeprefix('/api/').rstrip('/')}"] += 1

    send, send_async = httpx.Client.send, httpx.AsyncClient.send

    def counted(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        response = send(client, request, **options)
        count(response)
        return response

    async def counted_async(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        response = await send_async(client, request, **options)
        count(response)
        return response

    monkeypatch.setattr(httpx.Client, "send", counted)
    monkeypatch.setattr(httpx.AsyncClient, "send", counted_async)
    monkeypatch.setattr(artifacts, "BAR_SECONDS", 3600.0)
    with temporary_settings({PREFECT_API_URL: server}):
        yield asked


def shown(server: str, run_name: str) -> list[str]:
    """Keys of the artifacts of the run of a name."""
    (run,) = post(server, "flow_runs/filter", {"flow_runs": {"name": {"any_": [run_name]}}})
    found = post(server, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    return sorted(artifact["key"] for artifact in found)


def test_a_run_asks_twelve_times(requests: Counter[str], server: str) -> None:
    """Four artifacts, one of which changes; no question for where results go, of which there are none."""
    asyncio.run(render(parse_job(JOB), name="counted"))
    assert requests == BY_PREFECT | {"POST artifacts": 4, "PATCH artifacts/ID": 1}
    assert shown(server, "render counted") == ["picture", "plan", "progress", "summary"]


def test_a_shard_asks_ten_times_however_many_cells_it_draws(requests: Counter[str], server: str) -> None:
    asyncio.run(shard([NamedJob(name=f"cell {seed}", job=parse_job(JOB | {"seed": seed})) for seed in range(3)]))
    assert requests == BY_PREFECT | {"POST artifacts": 2, "PATCH artifacts/ID": 1}


def test_artifacts_of_the_end_are_made_at_once(
    requests: Counter[str], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar, the picture and the summary: each is asked for before another one is answered."""
    waiting: list[str] = []
    all_are_here = asyncio.Event()
    send = httpx.AsyncClient.send

    async def together(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        kind = artifact_key(request)
        if kind in {"picture", "summary", "update"}:
            waiting.append(kind)
            if len(waiting) == 3:
                all_are_here.set()
            await asyncio.wait_for(all_are_here.wait(), 60)
        return await send(client, request, **options)

    monkeypatch.setattr(httpx.AsyncClient, "send", together)
    asyncio.run(render(parse_job(JOB | {"seed": 5})))
    assert len(waiting) == 3


def artifact_key(request: httpx.Request) -> str:
    if not request.url.path.startswith("/api/artifacts/"):
        return ""
    found = re.search(rb'"key":\s?"(\w+)"', request.content)
    return found.group(1).decode() if found else "update"
