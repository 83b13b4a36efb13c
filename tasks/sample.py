"""Tasks: the steps of a run, a chunk at a time; each is done when the state after it is in the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.batching import Count, Networks
from prefect_regional_diffusion.sampling_core.tensors.types import Latent
from prefect_regional_diffusion.tasks.machine.devices import (
    DEVICES_SPEC,
    Devices,
    device_name,
    from_tensor,
    to_tensor,
    with_step,
)
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.render_context import Run
from prefect_regional_diffusion.tasks.storage.keys import step_of
from prefect_regional_diffusion.tasks.storage.parallel_io import at_once
from prefect_regional_diffusion.tasks.ui.step_listener import report_step

_DEVICES = "devices"
"""Name of what a stored state has beside the composition's own tensors."""


class Chunk(NamedTuple):
    """Sampled steps and what they cost."""

    steps: int
    cost: Count
    seconds: float


class Progress:
    """Where a run is in this process: its newest state, ahead of the store by what is still being written.

    One thread moves it; others may look at it meanwhile.
    """

    def __init__(self, run: Run, state: Any, devices: Devices = ()) -> None:
        """`devices` drew the steps up to the state."""
        self.run = run
        # The last two states, in one value, so that who looks never sees two that do not follow each other.
        self._states = state, state
        self.devices = devices

    @property
    def state(self) -> Any:
        """The newest state."""
        return self._states[1]

    @cached_property
    def _using(self) -> Networks:
        """The networks, with what was found of their memory: a batch that was too large is not tried again."""
        networks = {name: self.run.denoiser(name) for name in self.run.job.models}
        return Networks(networks, self.run.conditionings, settings().max_rows)

    @property
    def done(self) -> int:
        """Finished steps."""
        return self.run.composition.done(self.state)

    @property
    def latents(self) -> Latent:
        """The finished latents [b, c, h, w], after the last step."""
        return self.run.composition.pictures(self.state)

    @property
    def expected(self) -> Latent:
        """A guess at the finished latents [b, c, h, w]."""
        return self.run.composition.expected(*self._states)

    def move(self, state: Any) -> None:
        """On to the next state, one step further, that this process' device has drawn."""
        self._states = self._states[1], state
        self.devices = with_step(self.devices, self.done, device_name())

    def to_tensors(self) -> dict[str, Tensor]:
        """The newest state, and which devices drew it, as the store keeps them."""
        return self.run.composition.to_tensors(self.state) | {_DEVICES: to_tensor(self.devices)}

    def advance(self, last: int) -> Chunk:
        """Sample up to step `last`."""
        started, total, composition = time.monotonic(), Count(), self.run.composition
        first = self.done
        for state, count in composition.iterate(self.state, self._using, until=last):
            self.move(state)
            total = total.plus(count)
            report_step(composition.done(state), composition.steps)
        return Chunk(last - first, total, time.monotonic() - started)


def counted(members: Sequence[Progress]) -> tuple[int, int]:
    """Steps of runs: finished ones, and all."""
    return sum(member.done for member in members), sum(member.run.composition.steps for member in members)


Sampled = asyncio.Future[Chunk]
"""Set once a chunk is sampled."""

Inputs = asyncio.Future[Any]
"""Done when masks, prompts and start image are durable."""


@task("base-only steps {first}-{last}")
async def warm_up(progress: Progress, first: int, last: int, sampled: Sampled, inputs: Inputs) -> None:
    """Steps in which the base has the whole canvas (counted from 1, both included)."""
    await _chunk(progress, last, sampled, inputs)


@task("regional steps {first}-{last}")
async def regional_steps(progress: Progress, first: int, last: int, sampled: Sampled, inputs: Inputs) -> None:
    """Steps in which the base and all regions move together (counted from 1, both included)."""
    await _chunk(progress, last, sampled, inputs)


async def _chunk(progress: Progress, last: int, sampled: Sampled, inputs: Inputs) -> None:
    """Sample up to step `last`, then store the state. It is stored only after masks, prompts and start image.

    That order holds the store together: a state without what it was made from would be continued with other masks or
    prompts, and then it is another picture's. The next chunk may begin once `sampled` is set; this one is done when
    its state is durable.
    """
    run = progress.run
    chunk = await asyncio.to_thread(progress.advance, last)
    tensors = progress.to_tensors()
    sampled.set_result(chunk)
    await asyncio.shield(inputs)
    await asyncio.to_thread(run.store.write_tensors, run.state_key(last), tensors)


async def newest(run: Run) -> Progress:
    """A run with the newest state that the store has whole, written by this run or another one."""
    listed = await at_once(lambda chapter: run.store.names(run.folder_of(chapter)), run.chapters)
    end = run.composition.steps
    for chapter, names in reversed(list(zip(run.chapters, listed, strict=True))):
        steps = {step for step in map(step_of, names) if step is not None and chapter.first < step <= end}
        for step in sorted(steps, reverse=True):
            restored = await asyncio.to_thread(_restored, run, step)
            if restored is not None:
                return restored
        end = chapter.first
    return Progress(run, run.composition.begin())


def _restored(run: Run, step: int) -> Progress | None:
    """The run in the state after a step; None if the store has none, or something else in its place."""
    key, composition = run.state_key(step), run.composition
    tensors = run.store.read_tensors(key, composition.specs(step) | {_DEVICES: DEVICES_SPEC})
    if tensors is None:
        return None
    devices = from_tensor(tensors.pop(_DEVICES), step)
    try:
        state = composition.from_tensors(tensors)
        if composition.done(state) == step:
            return Progress(run, state, devices)
    except (KeyError, ValueError, IndexError, TypeError, RuntimeError, OverflowError) as error:
        run.store.tell_unfit(key, error)
        return None
    run.store.tell_unfit(key, ValueError("it is the state after another step"))
    return None
