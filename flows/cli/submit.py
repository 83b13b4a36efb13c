"""The command `regional submit`: a run of a deployment on a Prefect server, and watching it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from getpass import getuser
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from prefect_regional_diffusion.flows.cli import stopping
from prefect_regional_diffusion.flows.cli.calling import client_of_server
from prefect_regional_diffusion.flows.cli.options import JobFile, Overrides
from prefect_regional_diffusion.flows.cli.printing import say
from prefect_regional_diffusion.flows.queueing.time_limit import checked_minutes
from prefect_regional_diffusion.flows.server.errors import no_deployment
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.text.plain_text import one_line, plain_address

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

    from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob
    from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob

NOT_COMPLETED = 1
_POLL_SECONDS = 2.0
_TASK_SECONDS = 1.5
"""After which the server has written what the tasks of a run were, once that has ended."""
_MOST_OWNER = 80
"""Characters of a name in a tag."""


def submit(
    job: JobFile,
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Work pool; its deployment is run. Default: that of the flow that draws the job."
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run; exit code 1 unless it completes.")] = False,
    owner: Annotated[
        str,
        typer.Option(metavar="NAME", help="Whose run it is: in a pool, owners take turns. Default: your user name."),
    ] = "",
    queue: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Work queue of the pool. Those with the better priority go first."),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="A run that takes longer fails; what it has drawn stays in the store. Default: the deployment's.",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="A new run, even if the same job was submitted before.")
    ] = False,
    set_: Overrides = None,
) -> None:
    """Have a job, or a grid job, drawn by the workers of the server at PREFECT_API_URL.

    A job that was submitted before is not drawn again: this finds its run, and makes a new one where that has failed or
    was cancelled, or with --again.

    It is a run of the deployment whose form has the job's fields: render, original-node (composition: sequential) or
    grid.
    """
    stopping.say(lambda: "stopped; nothing was submitted")
    from prefect_regional_diffusion.tasks.inputs.job_files import read_any

    flow, data = addressed(read_any(job, set_ or []))
    parameters = {"job": data, "name": job.stem[:80]}
    if time_limit is not None:
        checked_minutes("--time-limit", time_limit)
    wanted = _Wanted(_owner(owner), queue, again, time_limit)
    if not stopping.run(_submit_run(flow, pool, parameters, wanted, watch)):
        raise typer.Exit(NOT_COMPLETED)


def addressed(job: RenderJob | GridJob) -> tuple[str, dict[str, Any]]:
    """The flow whose form in Prefect's UI shows all fields of a job, and the job as that flow's parameter."""
    from prefect_regional_diffusion.sampling_core.job.forms import data_for_node_form
    from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob

    if not isinstance(job, GridJob) and job.composition == "sequential":
        return "original-node", data_for_node_form(job)
    return "grid" if isinstance(job, GridJob) else "render", job.model_dump(mode="json", exclude_unset=True)


class _Wanted(NamedTuple):
    """How a run is asked for; see `submit_once`."""

    owner: str
    queue: str | None
    again: bool
    time_limit: float | None


def _owner(name: str) -> str:
    """Whose run it is. In a container, a user may have no name."""
    if not name:
        with suppress(KeyError, OSError):
            name = getuser()
    return one_line(name, _MOST_OWNER)


async def _submit_run(flow: str, pool: str | None, parameters: dict[str, Any], wanted: _Wanted, watch: bool) -> bool:
    """Find or create the run and, if asked, follow it; False if it ended otherwise than completed."""
    from prefect_regional_diffusion.flows.queueing.submission import submit_once

    async with client_of_server() as client:
        deployment = await _deployment(client, flow, pool)
        stopping.say(lambda: "stopped before the server had answered; it may have the run")
        run, is_new = await submit_once(client, deployment.id, parameters, **wanted._asdict())
        address = _address(run)
        stopping.say(lambda: f"stopped watching; the run goes on: {address}")
        say(address)
        if not is_new:
            say("This job was submitted before; that is its run. A new one: --again", stderr=True)
        return not watch or await _watched(client, run)


async def _deployment(client: PrefectClient, flow: str, pool: str | None) -> DeploymentResponse:
    """The deployment with the flow's name or, as a run cannot leave its deployment's pool, the one in the pool."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName
    from prefect.exceptions import ObjectNotFound

    if pool is None:
        try:
            return await client.read_deployment_by_name(f"{flow}/{flow}")
        except ObjectNotFound as error:
            raise no_deployment(f"{flow}/{flow}") from error
    deployments = await client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))
    matching = [deployment for deployment in deployments if deployment.work_pool_name == pool]
    if not matching:
        pools = sorted({str(deployment.work_pool_name) for deployment in deployments if deployment.work_pool_name})
        raise BadInput("--pool", pool, f"a pool with a deployment of {flow}: {', '.join(pools) or 'there is none'}")
    return min(matching, key=lambda deployment: deployment.name != flow)


def _address(run: FlowRun) -> str:
    from prefect.utilities.urls import url_for

    return plain_address(url_for(run) or run.id)


async def _watched(client: PrefectClient, run: FlowRun) -> bool:
    """Print each task as it begins, and each new state of the run, until it has ended; True if it completed."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort

    from prefect_regional_diffusion.flows.queueing.place import place_of

    started_tasks, last_state, last_place = set[str](), "", ""
    run_filter = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    while True:
        state = (await client.read_flow_run(run.id)).state
        if state is not None and state.is_final():
            await asyncio.sleep(_TASK_SECONDS)
        # The newest ones, one page of the API: a long run has thousands.
        recent = await client.read_task_runs(
            flow_run_filter=run_filter, sort=TaskRunSort.EXPECTED_START_TIME_DESC, limit=200
        )
        for task in reversed(recent):
            if task.start_time and task.name not in started_tasks:
                say(task.name, stderr=True, indent="  ")
                started_tasks.add(task.name)
        if state is not None and state.name != last_state:
            last_state = str(state.name)
            say(f"{last_state} {state.message or ''}".strip(), stderr=True)
        if state is not None and state.is_scheduled() and run.work_pool_name:
            place = str(await place_of(client, run.id, run.work_pool_name) or last_place)
            if place != last_place:
                last_place = place
                say(place, stderr=True)
        if state is not None and state.is_final():
            return state.is_completed()
        await asyncio.sleep(_POLL_SECONDS)
