"""Task: steps of several runs at once, in the same forwards; what they have in common is computed once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import cached_property

from prefect_regional_diffusion.sampling_core.engine.batched_runs import Member, advance_together
from prefect_regional_diffusion.sampling_core.engine.batching import Count, Networks
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.sample import Chunk, Inputs, Progress, Sampled, counted
from prefect_regional_diffusion.tasks.storage.keys import TensorKey
from prefect_regional_diffusion.tasks.storage.parallel_io import at_once
from prefect_regional_diffusion.tasks.ui.step_listener import report_step


class Company:
    """Runs that are drawn together, each in its own state; they use the same models.

    In a round, every run that is not finished takes a step. `rounds` are those that are left at the start.
    """

    def __init__(self, members: Sequence[Progress]) -> None:
        self.members = members
        self.rounds = max(self._left(member) for member in self.members)

    @cached_property
    def _using(self) -> Networks:
        runs = [member.run for member in self.members]
        encoded = {key: told for run in runs for key, told in run.conditionings.items()}
        networks = {name: run.denoiser(name) for run in runs for name in run.job.models}
        return Networks(networks, encoded, settings().max_rows)

    @staticmethod
    def _left(member: Progress) -> int:
        return member.run.composition.steps - member.done

    def ends(self) -> list[int]:
        """Rounds after which a state must be kept: where runs part, and the last one."""
        parting = {chapter.first - member.done for member in self.members for chapter in member.run.chapters}
        return [*sorted(end for end in parting if 0 < end < self.rounds), self.rounds]

    def advance(self, rounds: int) -> Chunk:
        """So many rounds. Raises StoreError if prompts of a run are nowhere."""
        started, total = time.monotonic(), Count()
        for _ in range(rounds):
            going = [member for member in self.members if self._left(member) > 0]
            states, count = advance_together(
                [Member(m.run.composition, m.state, m.run.state_key(m.done + 1)) for m in going], self._using
            )
            for member, state in zip(going, states, strict=True):
                member.move(state)
            total = total.plus(count)
            report_step(*counted(self.members))
        return Chunk(rounds, total, time.monotonic() - started)

    def states(self) -> dict[TensorKey, Progress]:
        """The members that have taken a step, by the keys of their present states; equal states once."""
        return {member.run.state_key(member.done): member for member in self.members if member.done}


@task("rounds {first}-{last}")
async def rounds(company: Company, first: int, last: int, sampled: Sampled, inputs: Inputs) -> None:
    """A step of each run per round (counted from 1, both included); done when the states are durable.

    They are stored only after masks, prompts and start images, as with one run alone.
    """
    before = set(company.states())
    chunk = await asyncio.to_thread(company.advance, last - first + 1)
    new = {key: (member.run.store, member.to_tensors()) for key, member in company.states().items()}
    sampled.set_result(chunk)
    await asyncio.shield(inputs)
    await at_once(lambda key: new[key][0].write_tensors(key, new[key][1]), new.keys() - before)
