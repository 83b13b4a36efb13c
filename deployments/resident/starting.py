"""The worker's side: the processes of our own flows' runs are hand-offs to a resident process.

Others' deployments, those with pull steps or a storage, and pools with a command of their own are started by Prefect.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskStatus
from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorkerResult

from prefect_regional_diffusion.deployments.resident import handoff
from prefect_regional_diffusion.deployments.resident.prefect_internals import (
    EngineCommandStarter,
    FlowRunExecutorContext,
)

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.client.schemas.responses import DeploymentResponse

_OUR_FLOWS = "prefect_regional_diffusion.flows."


class NoHooks:
    """Our flows have none: to look for them, Prefect would load a flow, and torch, into its worker or a new process."""

    async def run_cancellation_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        pass

    async def run_crashed_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        pass


def own_entrypoint(deployment: DeploymentResponse | None) -> str | None:
    """The entrypoint of a deployment of ours that is run where the package is installed; None for others."""
    if deployment is None or deployment.pull_steps or deployment.storage_document_id:
        return None
    entrypoint = deployment.entrypoint or ""
    return entrypoint if entrypoint.startswith(_OUR_FLOWS) and ":" not in entrypoint else None


def hand_off_command(path: str) -> str:
    """The command of a hand-off to the resident process at a socket."""
    return command_to_string([sys.executable, "-I", "-S", handoff.__file__, path])


async def run_handed_off(
    flow_run: FlowRun,
    configuration: ProcessJobConfiguration,
    path: str,
    entrypoint: str,
    task_status: TaskStatus[int],
) -> ProcessWorkerResult:
    """As `ProcessWorker.run` does with a command, in a session of its own. Raises RuntimeError if it did not start."""
    async with FlowRunExecutorContext() as context:
        starter = EngineCommandStarter(
            command=hand_off_command(path),
            entrypoint=entrypoint,
            cwd=Path(configuration.working_dir or Path.cwd()).resolve(),
            env=configuration.env,
            stream_output=configuration.stream_output,
            control_channel=context.control_channel,
            isolate_process_group=True,
            env_overrides_settings=True,
        )
        executor = context.create_executor(flow_run, starter, propose_submitting=False, hook_runner=NoHooks())
        executions: list[Any] = []

        async def execute(*, task_status: TaskStatus[Any]) -> None:
            executions.append(await executor.submit(task_status=task_status))

        async with anyio.create_task_group() as group:
            handle = await group.start(execute)
            task_status.started(handle.pid)
    execution = executions[0]
    if execution is None or execution.status_code is None:
        raise RuntimeError("Failed to start flow run process.")
    return ProcessWorkerResult(status_code=execution.status_code, identifier=str(execution.handle.pid))
