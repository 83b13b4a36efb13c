"""Shards as runs of a deployment: started once each, watched until they end, wherever they are drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from prefect_regional_diffusion.flows.reap import GIVEN_UP
from prefect_regional_diffusion.flows.server.errors import no_deployment
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.retry import Retry
from prefect_regional_diffusion.tasks.machine.secrets import reason_of
from prefect_regional_diffusion.tasks.ui.artifacts import ProgressArtifact, best_effort

logger = plain_logger(__name__)

DEPLOYMENT = "shard/shard"
_PAGE = 200
"""Most runs that the API tells at once."""


class ShardRequest(NamedTuple):
    """The jobs that one shard draws."""

    parameters: Mapping[str, Any]
    """Of the shard's run."""
    key: str
    """Stands for everything that makes the pictures: other jobs, images, weights or places have another one."""
    drawn: Callable[[], Awaitable[bool]]
    """Whether all of its pictures are there."""


def check_server(parallel_shards: int) -> None:
    """Raise BadInput where there is no server that could start shards."""
    if not get_current_settings().api.url:
        raise BadInput("parallel_shards", parallel_shards, "left out without a Prefect server (PREFECT_API_URL)")


async def run_shards(parts: Sequence[ShardRequest], poll: float, crash_timeout_seconds: float) -> list[str]:
    """Start a run for each part, or find the one that this run started before, and wait until all have ended.

    A Crashed run may be requeued by someone else, so it counts as ended only after `crash_timeout_seconds` seconds.
    Returns the names of those that did not complete. Raises ServerError if the server has no such deployment.
    """
    started = [await _started(number, part, crash_timeout_seconds) for number, part in enumerate(parts, start=1)]
    runs: dict[UUID, FlowRun | None] = {run.id: run for run in started}
    bar = ProgressArtifact()
    while True:
        ended = sum(_ended(run, crash_timeout_seconds) for run in runs.values())
        await best_effort(bar.show(ended, len(runs), f"{ended} of {len(runs)} shards have ended"))
        if ended == len(runs):
            return [run.name for run in started if not _completed(runs[run.id])]
        await asyncio.sleep(poll)
        runs = await _patience(crash_timeout_seconds).acall(partial(_read, list(runs)))


async def _started(number: int, part: ShardRequest, crash_timeout_seconds: float) -> FlowRun:
    """The run of a part: one that is still at work or has drawn all of it, or else a new one.

    Each time that this flow run is started anew, a part whose run failed, or whose pictures are gone, gets one more.
    """
    name = f"{number} of {flow_run.get_name()}"[:80]
    own, run = flow_run.get_id(), None
    for attempt in range(1, max(flow_run.get_run_count(), 1) + 1):
        start = partial(_start, dict(part.parameters) | {"name": name}, f"{own}/{part.key}/{attempt}")
        run = await _patience(crash_timeout_seconds).acall(start)
        if not _ended(run, crash_timeout_seconds) or (_completed(run) and await part.drawn()):
            break
    assert run is not None
    return run


async def _start(parameters: dict[str, Any], key: str) -> FlowRun:
    """A run of the deployment, or the one that has this key already."""
    try:
        return await arun_deployment(
            DEPLOYMENT,
            parameters=parameters,
            timeout=0,
            tags=["regional"],
            idempotency_key=key,
            flow_run_name=f"shard {parameters['name']}",
        )
    except ObjectNotFound as error:
        raise no_deployment(DEPLOYMENT) from error


async def _read(ids: Sequence[UUID]) -> dict[UUID, FlowRun | None]:
    """The runs as they are now; None for one that somebody has deleted."""
    found: dict[UUID, FlowRun | None] = dict.fromkeys(ids)
    async with get_client() as client:
        for first in range(0, len(ids), _PAGE):
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(ids[first : first + _PAGE])))
            for run in await client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE):
                found[run.id] = run
    return found


def _ended(run: FlowRun | None, crash_timeout_seconds: float) -> bool:
    """Whether nobody goes on with a run: neither a process nor, after a crash, the reaper."""
    if run is None:
        return True
    state = run.state
    if state is None or not state.is_final():
        return False
    return not state.is_crashed() or state.name == GIVEN_UP or _age(state.timestamp) > crash_timeout_seconds


def _completed(run: FlowRun | None) -> bool:
    return run is not None and run.state is not None and run.state.is_completed()


def _age(since: datetime) -> float:
    return (datetime.now(UTC) - since).total_seconds()


def _patience(seconds: float) -> Retry:
    """Questions to a server that may be restarted meanwhile. To start a run twice does no harm: it has a key."""

    def passes(error: Exception) -> bool:
        if isinstance(error, PrefectHTTPStatusError):
            return error.response.status_code >= 500
        return isinstance(error, httpx.TransportError)

    def tell(error: Exception, pause: float) -> None:
        logger.warning("the Prefect server does not answer (%s); asking again in %.1f s", reason_of(error), pause)

    return Retry(seconds, passes, tell)
