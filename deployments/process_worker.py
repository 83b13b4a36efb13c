"""Prefect's process worker, as `deployments.worker` starts it: runs are started as their pool says, and not otherwise.

Where the pool names no working directory, a run has the worker's own. Runs of our own flows are handed to a resident
process (`resident`) if there is one. Which runs are taken is decided by `dispatch`.

Prefect's server checks `job_variables` where a run of a deployment is asked for, but not where a run is made without
(`POST /flow_runs/`), and its workers take whatever has reached them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskStatus
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult
from pydantic import PrivateAttr

from prefect_regional_diffusion.deployments import dispatch
from prefect_regional_diffusion.deployments.resident import keeping as resident
from prefect_regional_diffusion.deployments.resident.starting import own_entrypoint, run_handed_off

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse


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
        self._entrypoint = own_entrypoint(deployment)


def hand_off_runs(path: str) -> None:
    """From now on, Prefect's worker hands runs of our own flows to the resident process at a socket."""
    run_as_prefect = ProcessWorker.run

    async def run(
        self: ProcessWorker,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        entrypoint = configuration.entrypoint if isinstance(configuration, AsThePoolSays) else None
        if entrypoint is None:
            return await run_as_prefect(self, flow_run, configuration, task_status)
        return await run_handed_off(flow_run, configuration, path, entrypoint, task_status or anyio.TASK_STATUS_IGNORED)

    ProcessWorker.run = run


def main() -> None:
    """The command line of Prefect, with this worker in the place of its own."""
    from prefect.cli import app

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(resident.OPTION, dest="socket")
    parser.add_argument(dispatch.OPTION, dest="load_seconds", type=float)
    own, sys.argv[1:] = parser.parse_known_args()
    ProcessWorker.job_configuration = AsThePoolSays
    dispatch.take_turns(own.load_seconds)
    if own.socket:
        hand_off_runs(own.socket)
    app()


if __name__ == "__main__":
    main()
