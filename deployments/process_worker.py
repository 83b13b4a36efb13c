"""The process that takes runs from a pool and starts theirs: `deployments.worker` starts it, and keeps it running.

`python -m prefect_regional_diffusion.deployments.process_worker gpu --limit 1`

Prefect's server checks `job_variables` where a run of a deployment is asked for, but not where a run is made without
(`POST /flow_runs/`), and its workers take whatever has reached them. This one starts a run as its pool says.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import anyio
import httpx
from anyio.abc import TaskStatus
from prefect.exceptions import PrefectHTTPStatusError
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult
from pydantic import PrivateAttr

from prefect_regional_diffusion.deployments.dispatch import Dispatch
from prefect_regional_diffusion.deployments.requeueing import put_back
from prefect_regional_diffusion.deployments.resident.fitness import VERSION
from prefect_regional_diffusion.deployments.resident.held_models import read_held
from prefect_regional_diffusion.deployments.resident.starting import own_entrypoint, run_handed_off
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.secrets import reason_of

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.client.schemas.responses import DeploymentResponse, WorkerFlowRunResponse

logger = plain_logger(__name__)


class AsThePoolSays(ProcessJobConfiguration):
    """How a run's process is started."""

    _entrypoint: str | None = PrivateAttr(default=None)

    @property
    def entrypoint(self) -> str | None:
        """Of a run that may be handed to a resident process: a flow of ours, started as Prefect would start it."""
        return None if self._command_configured else self._entrypoint

    @classmethod
    async def from_template_and_values(
        cls, base_job_template: dict[str, Any], values: dict[str, Any], client: PrefectClient | None = None
    ) -> AsThePoolSays:
        """As Prefect does. Raises ValueError where a run or its deployment sets what its pool does not list."""
        undeclared = sorted(values.keys() - base_job_template["variables"].get("properties", {}).keys())
        if undeclared:
            raise ValueError(f"job_variables: {', '.join(undeclared)[:200]} cannot be set; the pool has fixed them")
        configuration = await super().from_template_and_values(base_job_template, values, client=client)
        if configuration.working_dir is None:
            # Not a temporary folder, as Prefect's: stores and outputs are named relative to it.
            configuration.working_dir = Path.cwd()
        return configuration

    def prepare_for_flow_run(
        self, flow_run: FlowRun, deployment: DeploymentResponse | None = None, *others: Any, **named: Any
    ) -> None:
        super().prepare_for_flow_run(flow_run, deployment, *others, **named)
        self.env[VERSION] = flow_run.deployment_version or ""
        self._entrypoint = own_entrypoint(deployment)


class RegionalWorker(ProcessWorker):
    """Prefect's process worker, which takes runs in the order of their turns and hands ours to a resident process."""

    job_configuration: type[ProcessJobConfiguration] = AsThePoolSays

    def __init__(
        self,
        pool: str,
        *,
        limit: int | None = None,
        name: str | None = None,
        resident: str | None = None,
        load_seconds: float | None = None,
    ) -> None:
        """
        Args:
            pool: Name of a work pool of type process.
            limit: Most runs at once; None: as many as the pool has.
            name: Of the worker in the UI; None: Prefect makes one.
            resident: Path of a resident process' socket; None: each run starts an interpreter.
            load_seconds: See `Dispatch`.
        """
        super().__init__(work_pool_name=pool, limit=limit, name=name)
        self._resident = resident
        held = partial(read_held, str(Path(resident).parent)) if resident else frozenset[str]
        self._dispatch = Dispatch(load_seconds, held)
        self.claimed = set[UUID]()
        """Runs that wait for their process here, and that no other worker takes."""

    @classmethod
    def __dispatch_key__(cls) -> str:
        """Its name in Prefect's list of workers, where `process` is Prefect's own; its type is that, too."""
        return "regional"

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        """Runs to take now: which ones is decided by `Dispatch`, or by the server where that fails."""
        offered = await super()._get_scheduled_flow_runs()
        if not offered or (self._limiter is not None and self._limiter.available_tokens < 1):
            return offered
        try:
            return await self._dispatch.choose(self.client, self.work_pool.name, offered)
        except Exception as error:  # else one run that makes this fail would keep the worker from all others
            is_ours = not isinstance(error, httpx.HTTPError | PrefectHTTPStatusError)
            logger.warning("Runs are taken in the order of their submission: %s", reason_of(error), exc_info=is_ours)
            return offered

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        is_ours = await super()._propose_pending_state(flow_run)
        if is_ours:
            self.claimed.add(flow_run.id)
        return is_ours

    async def _submit_run(self, flow_run: FlowRun) -> None:
        await super()._submit_run(flow_run)
        # Where it is cancelled, what it has claimed stays claimed.
        self.claimed.discard(flow_run.id)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Start the process of a run, and wait for its end."""
        entrypoint = configuration.entrypoint if isinstance(configuration, AsThePoolSays) else None
        status = _Started(task_status or anyio.TASK_STATUS_IGNORED, partial(self.claimed.discard, flow_run.id))
        if self._resident is None or entrypoint is None:
            return await super().run(flow_run, configuration, status)
        return await run_handed_off(flow_run, configuration, self._resident, entrypoint, status)


class _Started(TaskStatus[int]):
    """Hands on that a run has a process, after it has called `then`."""

    def __init__(self, status: TaskStatus[int], then: Callable[[], None]) -> None:
        self._status, self._then = status, then

    def started(self, value: int | None = None) -> None:
        self._then()
        self._status.started(cast("int", value))


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS_TO_STOP = 3.0
"""For a worker to begin to end; what it waited for may have swallowed that it was cancelled."""


async def work(worker: RegionalWorker, *, with_healthcheck: bool) -> None:
    """Take runs until this process gets SIGINT or SIGTERM. A second signal kills it.

    Runs that go on then are ended, and those that have no process yet put back into the queue.
    """
    loop, is_told = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        is_told.set()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    say = partial(print, flush=True)
    at_work = asyncio.ensure_future(worker.start(with_healthcheck=with_healthcheck, printer=say))
    told = asyncio.ensure_future(is_told.wait())
    await asyncio.wait({at_work, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if is_told.is_set():
        await _stop(worker, at_work)
    try:
        await at_work
    except asyncio.CancelledError:
        # The others are put back by whoever has ended their processes (`deployments.worker`).
        for flow_run_id in worker.claimed:
            await asyncio.to_thread(put_back, flow_run_id, _is_pending)
        say(f"Worker {worker.name!r} stopped!")


def _is_pending(state: State) -> bool:
    return state.is_pending()


async def _stop(worker: RegionalWorker, at_work: asyncio.Future[None]) -> None:
    """Cancel its work until it ends. Once it ends its runs it is let alone: they have time to store what they have."""
    at_work.cancel()
    while not (await asyncio.wait({at_work}, timeout=_SECONDS_TO_STOP))[0]:
        if worker.is_setup:
            at_work.cancel()


def main() -> None:
    from prefect.logging.configuration import setup_logging

    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pool")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--name")
    parser.add_argument("--resident", metavar="SOCKET", help="path of a resident process' socket")
    parser.add_argument("--load-seconds", type=float, help="of a model; without it, no model is kept from run to run")
    parser.add_argument("--with-healthcheck", action="store_true", help="answer at PREFECT_WORKER_WEBSERVER_PORT")
    options = vars(parser.parse_args())
    with_healthcheck = options.pop("with_healthcheck")
    setup_logging()
    asyncio.run(work(RegionalWorker(**options), with_healthcheck=with_healthcheck))


if __name__ == "__main__":
    main()
