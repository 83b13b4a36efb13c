"""Runs that are sampled together, in the same forwards; what they have in common is computed once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.engine.batched_runs import Member, advance_together
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext
from prefect_regional_diffusion.sampling_core.models.family import Denoiser
from prefect_regional_diffusion.tasks.machine.metrics import tell
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.machine.step_listener import report_step
from prefect_regional_diffusion.tasks.runtime.loaded_adapters import load_adapters
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress
from prefect_regional_diffusion.tasks.storage.keys import TensorKey


class Chunk(NamedTuple):
    """Sampled steps and what they cost."""

    steps: int
    cost: Count
    seconds: float


class RunBatch:
    """Runs, at least one, that are sampled together: they use the same models, and each has a state of its own.

    Every run that is not finished takes a step at a time. Steps of the batch are counted from 1 as those of the run
    that has the most of them left: of one run alone they are its own.
    """

    def __init__(self, members: Sequence[RunProgress]) -> None:
        # One thread replaces the members; others, which show them, may read them meanwhile.
        self.members = tuple(members)
        self._denoisers: dict[str, Denoiser] = {}
        self._exit_stack = ExitStack()

    def load(self, model: str) -> None:
        """Load a model's denoiser with its ControlNets and T2I-Adapters. They stay loaded until the batch is closed.

        Raises ModelError.
        """
        if model in self._denoisers:
            return
        runs = [member.run for member in self.members if model in member.run.models]
        self._denoisers[model] = self._exit_stack.enter_context(runs[0].denoiser(model))
        for network in (network for run in runs for network in run.control_networks(model)):
            self._exit_stack.enter_context(network)

    def close(self) -> None:
        """No step follows: the denoisers may leave memory."""
        self.__dict__.pop("_networks", None)
        self._denoisers.clear()
        self._exit_stack.close()

    @cached_property
    def _networks(self) -> EvaluationContext:
        """The networks, with the row limit that their memory set: a forward that was too large is not tried again."""
        runs = [member.run for member in self.members]
        conditionings = {prompt: conditioning for run in runs for prompt, conditioning in run.conditionings.items()}
        for name in (name for run in runs for name in run.models):
            self.load(name)
        adapters = load_adapters(runs).of_row
        return EvaluationContext(self._denoisers, conditionings, settings().max_forward_rows, adapters)

    @property
    def _slowest(self) -> RunProgress:
        return max(self.members, key=lambda member: member.left)

    @property
    def done(self) -> int:
        """Finished steps."""
        return self._slowest.done

    @property
    def base_only_steps(self) -> int:
        """Up to this step, all unfinished members sample their base alone."""
        unfinished = [member for member in self.members if member.left]
        base_only = min((member.run.sampling_run.base_only_steps - member.done for member in unfinished), default=0)
        return self.done + max(base_only, 0)

    def ends(self) -> list[int]:
        """Steps, in order, after which a state is kept: where other jobs can go on, and the last one."""
        done, last = self.done, self._slowest.run.sampling_run.steps
        segment_starts = {segment.first - member.done for member in self.members for segment in member.run.segments}
        ends = {self.base_only_steps, *(done + steps for steps in segment_starts)}
        return [*sorted(end for end in ends if done < end < last), last]

    def advance(self, steps: int) -> Chunk:
        """So many steps. Raises StoreError if prompts of a run are nowhere."""
        started, total, (done, _) = time.monotonic(), Count(), self.steps_done()
        for _ in range(steps):
            unfinished = [i for i, member in enumerate(self.members) if member.left]
            members = [
                Member(member.run.sampling_run, member.state, member.run.state_key(member.done + 1))
                for member in (self.members[i] for i in unfinished)
            ]
            states, count = advance_together(members, self._networks)
            new_states = dict(zip(unfinished, states, strict=True))
            self.members = tuple(
                member.moved_to(new_states[i]) if i in new_states else member for i, member in enumerate(self.members)
            )
            total = total.plus(count)
            report_step(*self.steps_done())
        chunk = Chunk(steps, total, time.monotonic() - started)
        tell("steps", self.steps_done()[0] - done, "computed")
        _tell_cost(chunk)
        return chunk

    def steps_done(self) -> tuple[int, int]:
        """Steps of all runs together: finished ones, and all."""
        return (
            sum(member.done for member in self.members),
            sum(member.run.sampling_run.steps for member in self.members),
        )

    def states(self) -> dict[TensorKey, RunProgress]:
        """The members that have taken a step, by the keys of their present states; equal states once."""
        return {member.state_key: member for member in self.members if member.done}


def _tell_cost(chunk: Chunk) -> None:
    tell("evaluations", chunk.cost.evaluations)
    tell("canvas_evaluations", float(chunk.cost.canvases))
    tell("forwards", chunk.cost.forwards)
    tell("sampling_seconds", chunk.seconds)
