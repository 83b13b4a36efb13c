"""What several runs cost that are drawn together, known before any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.batched_runs import Member, advance_together
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext
from prefect_regional_diffusion.sampling_core.engine.cache_keys import SegmentKey, state_name
from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.family import Denoiser
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.planning.counting import counting_context
from prefect_regional_diffusion.sampling_core.planning.unencoded import Unencoded
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.tensors.types import Rows


class PlannedRun(NamedTuple):
    """A run, the names of its segments (states with one name are one state), and the shapes of its prompts."""

    run: SamplingRun[Any]
    segments: tuple[SegmentKey, ...]
    prompts: Unencoded

    def state_name(self, step: int) -> str:
        return state_name(self.segments, step)

    @property
    def fork_steps(self) -> set[int]:
        """Steps after which other runs may go on, the last one included."""
        return {segment.first for segment in self.segments if segment.first} | {self.run.steps}


class BatchCost(NamedTuple):
    """Steps that are computed, those that are spared because another run computes the same, rows and calls."""

    steps: int = 0
    shared_steps: int = 0
    evaluations: int = 0
    forwards: int = 0
    most_rows: int = 0
    """Rows of the largest forward."""
    control_rows: int = 0
    """Rows that ControlNets answer."""
    canvases: Fraction = Fraction(0)
    """The work of all rows in evaluations of a whole canvas."""


class _Counting:
    """A denoiser that returns its input, and records the rows of its largest forward."""

    def __init__(self) -> None:
        self.most_rows = 0

    def __call__(
        self, x: Rows, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Rows:
        self.most_rows = max(self.most_rows, len(x))
        return x


def batch_cost(shards: Iterable[Sequence[PlannedRun]], max_forward_rows: int | None = None) -> BatchCost:
    """Counted, not calculated: all runs of a shard step together, as when they are drawn, but without a network.

    Shards are drawn one after the other; a later one goes on from states that an earlier one has kept.
    """
    stored_states: dict[str, dict[str, Tensor]] = {}
    total, network = BatchCost(), _Counting()
    for runs in shards:
        for count, computed, members in _rounds(
            runs, _counting_context(runs, network, max_forward_rows), stored_states
        ):
            total = BatchCost(
                total.steps + computed,
                total.shared_steps + members - computed,
                total.evaluations + count.evaluations,
                total.forwards + count.forwards,
                control_rows=total.control_rows + count.control_rows,
                canvases=total.canvases + count.canvases,
            )
    return total._replace(most_rows=network.most_rows)


def _rounds(
    runs: Sequence[PlannedRun], context: EvaluationContext, stored_states: dict[str, dict[str, Tensor]]
) -> Iterator[tuple[Count, int, int]]:
    """A step of every run that is not finished: what it cost, how many different ones there were, of how many runs."""
    states = [_newest(planned_run, stored_states) for planned_run in runs]
    while unfinished := [
        i for i, planned_run in enumerate(runs) if planned_run.run.steps_done(states[i]) < planned_run.run.steps
    ]:
        names = {i: runs[i].state_name(runs[i].run.steps_done(states[i]) + 1) for i in unfinished}
        new_states, count = advance_together([Member(runs[i].run, states[i], names[i]) for i in unfinished], context)
        for i, state in zip(unfinished, new_states, strict=True):
            states[i] = state
            if runs[i].run.steps_done(state) in runs[i].fork_steps:
                stored_states[names[i]] = runs[i].run.to_tensors(state)
        yield count, len(set(names.values())), len(unfinished)


def _newest(planned_run: PlannedRun, stored_states: dict[str, dict[str, Tensor]]) -> Any:
    """The state from which a run goes on: the newest that is kept, or its beginning."""
    for step in sorted(planned_run.fork_steps, reverse=True):
        tensors = stored_states.get(planned_run.state_name(step))
        if tensors is not None:
            return planned_run.run.from_tensors(tensors)
    return planned_run.run.initial_state()


def _counting_context(runs: Sequence[PlannedRun], network: Denoiser, max_forward_rows: int | None) -> EvaluationContext:
    prompts = {key for planned_run in runs for key in planned_run.run.prompts}
    layouts = {key: layout for planned_run in runs for key, layout in planned_run.prompts.items()}
    return counting_context(prompts, layouts, max_forward_rows, network)
