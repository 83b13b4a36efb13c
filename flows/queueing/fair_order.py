"""The order in which the runs of a pool are taken, fair between their owners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from prefect_regional_diffusion.flows.queueing.waiting_run import WaitingRun


def fair_order(
    waiting: Iterable[WaitingRun], running: Mapping[str, int], last_starts: Mapping[str, float]
) -> list[WaitingRun]:
    """Waiting runs in the order of their turns.

    By the priority of their queues; among equals owners take turns: first who has the fewest runs at work, then whose
    last run began longest ago. The runs of one owner are taken in the order in which they are due. So somebody with 5
    runs beside somebody with 500 waits as if there were two queues, not one.

    Args:
        waiting: Runs that are due, in any order.
        running: How many runs of each owner are at work in the pool.
        last_starts: When each owner's last run began, in seconds since 1970; who is not in it has not had one of late.
    """
    turns_taken = Counter(running)
    turns = list[tuple[int, int, float, float, WaitingRun]]()
    for run in sorted(waiting, key=lambda run: (run.priority, run.due, run.id)):
        turns.append((run.priority, turns_taken[run.owner], last_starts.get(run.owner, 0.0), run.due, run))
        turns_taken[run.owner] += 1
    return [run for *_, run in sorted(turns, key=lambda turn: (*turn[:4], turn[4].id))]
