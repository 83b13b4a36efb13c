"""Which run a worker takes next: one whose models it holds, as long as no other is kept waiting for it too long.

To overtake is worth what it saves: a run that needs no model to be loaded may go before one that does for `PATIENCE`
times the seconds of that load, and no longer. Where several workers have work of several models, each stays with its
own, and one that must load does so for a model that no other worker has. The figures behind the numbers here come from
`benchmarks.fleet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from uuid import UUID

from prefect_regional_diffusion.flows.queueing.waiting_run import WaitingRun

PATIENCE = 6
"""Load times for which a run may be overtaken by others that save one."""

HOLD = 4
"""Load times for which a run is left to a worker that holds its models, and is at work.

Simulated, there are up to thirteen times as many loads with 2 as with 4, and up to five times as many with 3; runs that
take a minute wait up to a quarter longer (p99) with 4 than with 3, others as long or shorter, but a third on 64 GPUs.
"""

_LONGEST_PAUSE = 1.3
"""Of a worker of Prefect's between two questions, over its `PREFECT_WORKER_QUERY_SECONDS`."""

_ANSWER_SECONDS = 1.7
"""For a question and its answer, on a server that is busy."""

_END_SECONDS = 3.0
"""From a run's end until its worker may ask, on a machine that is busy; measured there: 1 to 2 s, seldom more."""

ADAPTER_SHARE = 0.1
"""Of a model's load time that a LoRA, a ControlNet or another adapter takes."""


def question_seconds(query_seconds: float) -> float:
    """In which every idle worker has asked for runs: so long a run is left to one that has its models, and is idle."""
    return _LONGEST_PAUSE * query_seconds + _ANSWER_SECONDS


def next_question_seconds(query_seconds: float) -> float:
    """In which a worker whose run has ended has asked for the next one: so long one is left to it."""
    return _END_SECONDS + question_seconds(query_seconds)


class Affinity:
    """The choice of one worker.

    It remembers which run it has passed over, and since when: no harm if it forgets.
    """

    def __init__(self, load_seconds: float, query_seconds: float = 1.0) -> None:
        """
        Args:
            load_seconds: About how long a model takes to load, in seconds.
            query_seconds: After which an idle worker asks again (`PREFECT_WORKER_QUERY_SECONDS`).
        """
        self._load_seconds = load_seconds
        self._question_seconds = question_seconds(query_seconds)
        self._next_question_seconds = next_question_seconds(query_seconds)
        self._passed_over: tuple[UUID, float] | None = None

    def choose(
        self,
        turns: Sequence[WaitingRun],
        held: frozenset[str],
        at_work: frozenset[str],
        last_ends: Mapping[str, float],
        now: float,
        *,
        alone: bool = False,
    ) -> WaitingRun | None:
        """The run to take now, or None: leave them to a worker that holds their models and may be free in a moment.

        Args:
            turns: Runs that are due, in the order of their turns (`fair_order`).
            held: Names of the models and adapters that this worker has in memory. None at all: it must load whatever
                comes, and waits for nothing.
            at_work: Names of the models of runs that others draw.
            last_ends: By name of a model, when a run with it ended last, in seconds since 1970; those that ended more
                than `next_question_seconds` ago may be left out.
            now: Seconds since 1970.
            alone: Whether no other worker could take them.
        """
        if not turns:
            return None
        first = turns[0]
        best = min(turns, key=lambda run: self._seconds_to_load(run, held)) if held else first
        load = self._seconds_to_load(first, held)
        saved = load - self._seconds_to_load(best, held)
        if saved > 0:
            limit = PATIENCE * saved
            if now - self._passed_over_since(first, now) < limit and best.due - first.due < limit:
                return best
        self._passed_over = None
        if alone or not load:
            return first
        # Whatever is taken now, this worker loads for it. It does so for the first run that somebody must load for, if
        # there is one: the others are as good as taken by workers that hold their models.
        candidates = [
            run for run in turns if self._seconds_to_load(run, held) <= load and run.due - first.due < PATIENCE * load
        ]
        for run in candidates:
            if not self._is_held_elsewhere(run, load, at_work, last_ends, now):
                return run
        if not held:
            return first
        return next((run for run in candidates if run.models <= at_work and now - run.due >= HOLD * load), None)

    def _is_held_elsewhere(
        self, run: WaitingRun, load: float, at_work: frozenset[str], last_ends: Mapping[str, float], now: float
    ) -> bool:
        """Whether a worker that holds a run's models draws, or has not had the time to ask for it."""
        if run.models <= at_work:
            return True
        last_end = min((last_ends.get(name, -inf) for name in run.models), default=-inf)
        held_until = max(run.due + min(self._question_seconds, load), last_end + min(self._next_question_seconds, load))
        return now < held_until

    def _passed_over_since(self, run: WaitingRun, now: float) -> float:
        if self._passed_over is None or self._passed_over[0] != run.id:
            self._passed_over = (run.id, now)
        return self._passed_over[1]

    def _seconds_to_load(self, run: WaitingRun, held: frozenset[str]) -> float:
        adapters = len(run.adapters - held)
        return self._load_seconds * (len(run.models - held) + ADAPTER_SHARE * adapters)
