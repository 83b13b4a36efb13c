"""Runs that somebody asks for, each job once: asking again finds the run that there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from prefect_regional_diffusion.flows.queueing.run_states import TAG, ended_badly
from prefect_regional_diffusion.flows.queueing.time_limit import limit_tags
from prefect_regional_diffusion.flows.queueing.waiting_run import OWNER
from prefect_regional_diffusion.sampling_core.hashing import content_hash

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

_SUBMISSION = "regional.submission"
"""Label of a run: which call has made it."""


class Submission(NamedTuple):
    """The run of a job."""

    run: FlowRun
    is_new: bool
    """Whether it was made for this call; else somebody has asked for the same before."""


async def submit_once(
    client: PrefectClient,
    deployment: UUID,
    parameters: dict[str, Any],
    *,
    owner: str = "",
    queue: str | None = None,
    again: bool = False,
    time_limit: float | None = None,
) -> Submission:
    """The run of a deployment with these parameters: one that waits, is at work or has completed, or else a new one.

    Its idempotency key is the `content_hash` of the parameters. A run that failed, was cancelled or was given up is no
    answer: asking again makes a new one, which goes on from what is stored.

    Args:
        client: Of the server.
        deployment: Its id.
        parameters: Of the flow, as JSON would have them.
        owner: Whose run it is: owners take turns. Empty: nobody's in particular.
        queue: The work queue of the pool; its priority goes before turns. None: the deployment's.
        again: Ask for a new run in any case.
        time_limit: Minutes that a new run may take; one that is found keeps its own. None: what the deployment says.
    """
    call = uuid4().hex
    tags = [TAG, *([f"{OWNER}{owner}"] if owner else []), *limit_tags(time_limit)]
    key = content = content_hash(parameters)
    if again:
        key = f"{content}/{call}"
    while True:
        run = await client.create_flow_run_from_deployment(
            deployment,
            parameters=parameters,
            tags=tags,
            idempotency_key=key,
            work_queue_name=queue,
            labels={_SUBMISSION: call},
        )
        is_new = run.labels.get(_SUBMISSION) == call
        if is_new or not ended_badly(run.state):
            return Submission(run, is_new)
        # Each run that ended badly has one successor, whoever asks.
        key = f"{content}/{run.id}"
