"""The time limit of a flow run, looked at after each chunk of steps: what is sampled by then is in the store."""

from __future__ import annotations

import time
from datetime import timedelta

from prefect_regional_diffusion.flows.common.errors import TimeLimitError
from prefect_regional_diffusion.flows.queueing.time_limit import minutes_allowed
from prefect_regional_diffusion.tasks.machine.task import in_flow_run


class TimeLimit:
    """Of one run, in all of its starts together: as long as the server takes it for running."""

    def __init__(self, minutes: float | None, spent: timedelta = timedelta()) -> None:
        """`minutes`: None: there is no limit. `spent`: what earlier starts took."""
        self._minutes = minutes
        self._start = time.monotonic() - spent.total_seconds()

    def check(self, done: int, steps: int) -> None:
        """Raise TimeLimitError where the time is over, and not all steps are done."""
        if self._minutes is None or done >= steps:
            return
        if time.monotonic() - self._start > 60 * self._minutes:
            raise TimeLimitError(
                f"its time limit of {self._minutes:g} minutes is over, after {done} of {steps} steps; they stay in the "
                "store: who submits the job again, with another limit, goes on from there"
            )


def time_limit_of_this_run() -> TimeLimit:
    """What the tags of the flow run say; outside of one there is no limit. Raises BadInput for a tag that says none."""
    if not in_flow_run():
        return TimeLimit(None)
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return TimeLimit(minutes_allowed(run.tags), run.total_run_time) if run else TimeLimit(None)
