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

from prefect_regional_diffusion.flows.queueing.run_states import GIVEN_UP, TAG
from prefect_regional_diffusion.flows.queueing.time_limit import TIME_LIMIT
from prefect_regional_diffusion.flows.queueing.waiting_run import OWNER
from prefect_regional_diffusion.flows.server.errors import no_deployment
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.retry import Retry
from prefect_regional_diffusion.tasks.machine.secrets import reason_of
from prefect_regional_diffusion.tasks.ui.artifacts import ProgressArtifact, best_effort

logger = plain_logger(__name__)

DEPLOYMENT = "shard/shard"
_PAGE = 200
"""API page size: most runs in one response."""


class ShardRequest(NamedTuple):
    """The jobs that one shard draws."""

    parameters: Mapping[str, Any]
    """Of the shard's run."""
    key: str
    """Stands for everything that makes the pictures: other jobs, images, weights or places have another one."""
    is_drawn: Callable[[], Awaitable[bool]]
    """Whether all of its pictures are there."""


def check_server(parallel_shards: int) -> None:
    """Raise BadInput where there is no server that could start shards."""
    if not get_current_settings().api.url:
        raise BadInput("parallel_shards", parallel_shards, "left out without a Prefect server (PREFECT_API_URL)")


async def run_shards(requests: Sequence[ShardRequest], poll: float, crash_timeout_seconds: float) -> list[str]:
    """Start a run for each request, or find the one that this run started before, and wait until all have ended.

    A Crashed run may be requeued by someone else, so it counts as ended only after `crash_timeout_seconds` seconds.
    Returns the names of those that did not complete. Raises ServerError if the server has no such deployment.
    """
    shard_runs = [
        await _run_of(number, request, crash_timeout_seconds) for number, request in enumerate(requests, start=1)
    ]
    runs: dict[UUID, FlowRun | None] = {run.id: run for run in shard_runs}
    progress = ProgressArtifact()
    while True:
        num_ended = sum(_has_ended(run, crash_timeout_seconds) for run in runs.values())
        await best_effort(progress.show(num_ended, len(runs), f"{num_ended} of {len(runs)} shards have ended"))
        if num_ended == len(runs):
            return [run.name for run in shard_runs if not _has_completed(runs[run.id])]
        await asyncio.sleep(poll)
        runs = await _server_retry(crash_timeout_seconds).acall(partial(_read, list(runs)))


async def _run_of(number: int, request: ShardRequest, crash_timeout_seconds: float) -> FlowRun:
    """The run of a request: one that is still at work or has drawn all of it, or else a new one.

    Each time that this flow run is started anew, a shard whose run failed, or whose pictures are gone, gets one more.
    """
    name = f"{number} of {flow_run.get_name()}"[:80]
    parent_id, run = flow_run.get_id(), None
    for attempt in range(1, max(flow_run.get_run_count(), 1) + 1):
        start = partial(_start, dict(request.parameters) | {"name": name}, f"{parent_id}/{request.key}/{attempt}")
        run = await _server_retry(crash_timeout_seconds).acall(start)
        if not _has_ended(run, crash_timeout_seconds) or (_has_completed(run) and await request.is_drawn()):
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
            tags=[TAG, *(tag for tag in flow_run.get_tags() or () if tag.startswith((OWNER, TIME_LIMIT)))],
            idempotency_key=key,
            flow_run_name=f"shard {parameters['name']}",
        )
    except ObjectNotFound as error:
        raise no_deployment(DEPLOYMENT) from error


async def _read(ids: Sequence[UUID]) -> dict[UUID, FlowRun | None]:
    """The runs as they are now; None for one that somebody has deleted."""
    runs: dict[UUID, FlowRun | None] = dict.fromkeys(ids)
    async with get_client() as client:
        for first in range(0, len(ids), _PAGE):
            run_filter = FlowRunFilter(id=FlowRunFilterId(any_=list(ids[first : first + _PAGE])))
            for run in await client.read_flow_runs(flow_run_filter=run_filter, limit=_PAGE):
                runs[run.id] = run
    return runs


def _has_ended(run: FlowRun | None, crash_timeout_seconds: float) -> bool:
    """Whether nobody goes on with a run: neither a process nor, after a crash, the reaper."""
    if run is None:
        return True
    state = run.state
    if state is None or not state.is_final():
        return False
    return not state.is_crashed() or state.name == GIVEN_UP or _age(state.timestamp) > crash_timeout_seconds


def _has_completed(run: FlowRun | None) -> bool:
    return run is not None and run.state is not None and run.state.is_completed()


def _age(since: datetime) -> float:
    return (datetime.now(UTC) - since).total_seconds()


def _server_retry(seconds: float) -> Retry:
    """Retries of requests to a server that may restart. Starting twice is harmless: runs have a key."""

    def is_transient(error: Exception) -> bool:
        if isinstance(error, PrefectHTTPStatusError):
            return error.response.status_code >= 500
        return isinstance(error, httpx.TransportError)

    def log_retry(error: Exception, pause: float) -> None:
        logger.warning("the Prefect server does not answer (%s); asking again in %.1f s", reason_of(error), pause)

    return Retry(seconds, is_transient, log_retry)
