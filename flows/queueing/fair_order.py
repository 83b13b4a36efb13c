"""The order in which the runs of a pool are taken, fair between their owners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from prefect_regional_diffusion.flows.queueing.waiting_run import WaitingRun


def fair_order(waiting: Iterable[WaitingRun], running: Mapping[str, int]) -> list[WaitingRun]:
    """Waiting runs in the order of their turns.

    By the priority of their queues; among equals owners take turns, and first those who have the fewest runs at work;
    the runs of one owner are taken in the order in which they are due. So somebody with 5 runs beside somebody with
    500 waits as if there were two queues, not one.

    Args:
        waiting: Runs that are due, in any order.
        running: How many runs of each owner are at work in the pool.
    """
    turns_taken = Counter(running)
    turns = list[tuple[int, int, WaitingRun]]()
    for run in sorted(waiting, key=lambda run: (run.priority, run.due, run.id)):
        turns.append((run.priority, turns_taken[run.owner], run))
        turns_taken[run.owner] += 1
    return [run for _, _, run in sorted(turns, key=lambda turn: (turn[0], turn[1], turn[2].due, turn[2].id))]
