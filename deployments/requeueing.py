"""A run that a worker had taken, put back into the queue because the worker ends: it goes on elsewhere at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from prefect_regional_diffusion.sampling_core.text.plain_text import plain

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


def put_back(flow_run_id: UUID, was_taken_away: Callable[[State], bool]) -> None:
    """Put a run back, if its state says that it was taken away, and say so; a server that cannot is said, too.

    What stays where it was is found by the flow `reap`, some minutes later.
    """
    try:
        if _requeue(flow_run_id, was_taken_away):
            print(f"Run {flow_run_id} is back in the queue.", flush=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, the reaper finds the run
        print(f"Run {flow_run_id} could not be put back: {plain(error)}", file=sys.stderr, flush=True)


def _requeue(flow_run_id: UUID, was_taken_away: Callable[[State], bool]) -> bool:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.responses import SetStateStatus
    from prefect.states import AwaitingRetry

    from prefect_regional_diffusion.flows.reap import TAKEN_AWAY

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
        if state is None or not was_taken_away(state):
            return False
        awaiting_retry = AwaitingRetry(message=f"{TAKEN_AWAY} ({os.uname().nodename})")
        response = client.set_flow_run_state(flow_run_id, awaiting_retry)
        # It may have been cancelled meanwhile.
        if response.status != SetStateStatus.ACCEPT:
            reason = getattr(response.details, "reason", None)
            raise RuntimeError(f"the server says {response.status.value} ({reason or 'no reason given'})")
        return True
