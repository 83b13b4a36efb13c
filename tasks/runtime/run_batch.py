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
        # One thread replaces the members; others, which show them, may look at them meanwhile.
        self.members = tuple(members)
        self._denoisers: dict[str, Denoiser] = {}
        self._in_use = ExitStack()

    def load(self, model: str) -> None:
        """Load a model's denoiser with what steers it, which stay in memory until the batch is closed.

        Raises ModelError.
        """
        if model in self._denoisers:
            return
        runs = [member.run for member in self.members if model in member.run.models]
        self._denoisers[model] = self._in_use.enter_context(runs[0].denoiser(model))
        for network in (network for run in runs for network in run.control_networks(model)):
            self._in_use.enter_context(network)

    def close(self) -> None:
        """No step follows: the denoisers may leave memory."""
        self.__dict__.pop("_networks", None)
        self._denoisers.clear()
        self._in_use.close()

    @cached_property
    def _networks(self) -> EvaluationContext:
        """The networks, with what was found of their memory: a forward that was too large is not tried again."""
        runs = [member.run for member in self.members]
        conditionings = {prompt: found for run in runs for prompt, found in run.conditionings.items()}
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
        """Up to this step, all that take part sample their base alone."""
        going = [member for member in self.members if member.left]
        alone = min((member.run.sampling_run.base_only_steps - member.done for member in going), default=0)
        return self.done + max(alone, 0)

    def ends(self) -> list[int]:
        """Steps, in order, after which a state is kept: where other jobs can go on, and the last one."""
        done, last = self.done, self._slowest.run.sampling_run.steps
        parting = {segment.first - member.done for member in self.members for segment in member.run.segments}
        ends = {self.base_only_steps, *(done + steps for steps in parting)}
        return [*sorted(end for end in ends if done < end < last), last]

    def advance(self, steps: int) -> Chunk:
        """So many steps. Raises StoreError if prompts of a run are nowhere."""
        started, total = time.monotonic(), Count()
        for _ in range(steps):
            going = [i for i, member in enumerate(self.members) if member.left]
            asked = [
                Member(member.run.sampling_run, member.state, member.run.state_key(member.done + 1))
                for member in (self.members[i] for i in going)
            ]
            states, count = advance_together(asked, self._networks)
            moved = dict(zip(going, states, strict=True))
            self.members = tuple(
                member.moved_to(moved[i]) if i in moved else member for i, member in enumerate(self.members)
            )
            total = total.plus(count)
            report_step(*self.steps_done())
        return Chunk(steps, total, time.monotonic() - started)

    def steps_done(self) -> tuple[int, int]:
        """Steps of all runs together: finished ones, and all."""
        return (
            sum(member.done for member in self.members),
            sum(member.run.sampling_run.steps for member in self.members),
        )

    def states(self) -> dict[TensorKey, RunProgress]:
        """The members that have taken a step, by the keys of their present states; equal states once."""
        return {member.state_key: member for member in self.members if member.done}
