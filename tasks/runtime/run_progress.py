"""How far a run is in this process, and where it resumes: from the newest undamaged state in the store."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from torch import Tensor

from prefect_regional_diffusion.sampling_core.tensors.types import Latent
from prefect_regional_diffusion.tasks.machine.devices import (
    DEVICES_SPEC,
    Devices,
    device_name,
    from_tensor,
    to_tensor,
    with_step,
)
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.storage.keys import TensorKey, step_of
from prefect_regional_diffusion.tasks.storage.parallel_io import map_concurrently

_DEVICES = "devices"
"""Name of the tensor that a stored state has beside the run's own."""


class RunProgress(NamedTuple):
    """A run in a state, which may be newer than what the store has of it. `devices` drew the steps up to there."""

    run: RenderContext
    state: Any
    devices: Devices = ()
    previous_state: Any = None
    """The state before it; None if unknown."""

    @property
    def done(self) -> int:
        """Finished steps."""
        return self.run.sampling_run.steps_done(self.state)

    @property
    def left(self) -> int:
        """Steps that are still to be taken."""
        return self.run.sampling_run.steps - self.done

    @property
    def state_key(self) -> TensorKey:
        """Key of the state; of a beginning there is none."""
        return self.run.state_key(self.done)

    @property
    def latents(self) -> Latent:
        """The finished latents [b, c, h, w], after the last step."""
        return self.run.sampling_run.final_latents(self.state)

    @property
    def predicted_clean(self) -> Latent:
        """The finished latents [b, c, h, w] as predicted from the present state."""
        return self.run.sampling_run.predicted_clean(
            self.state if self.previous_state is None else self.previous_state, self.state
        )

    def moved_to(self, state: Any) -> RunProgress:
        """One step further, on this process' device."""
        devices = with_step(self.devices, self.run.sampling_run.steps_done(state), device_name())
        return RunProgress(self.run, state, devices, self.state)

    def to_tensors(self) -> dict[str, Tensor]:
        """The state, and which devices drew it, as the store keeps them."""
        return self.run.sampling_run.to_tensors(self.state) | {_DEVICES: to_tensor(self.devices)}


async def newest(run: RenderContext) -> RunProgress:
    """A run with the newest undamaged state in the store, written by this run or another one."""
    listings = await map_concurrently(lambda segment: run.store.names(run.folder_of(segment)), run.segments)
    end = run.sampling_run.steps
    for segment, names in reversed(list(zip(run.segments, listings, strict=True))):
        steps = {step for step in map(step_of, names) if step is not None and segment.first < step <= end}
        for step in sorted(steps, reverse=True):
            progress = await asyncio.to_thread(_restore, run, step)
            if progress is not None:
                return progress
        end = segment.first
    return RunProgress(run, run.sampling_run.initial_state())


def _restore(run: RenderContext, step: int) -> RunProgress | None:
    """The run in the state after a step; None if the store has none, or something else in its place."""
    key, composition = run.state_key(step), run.sampling_run
    tensors = run.store.read_tensors(key, composition.specs(step) | {_DEVICES: DEVICES_SPEC})
    if tensors is None:
        return None
    devices = from_tensor(tensors.pop(_DEVICES), step)
    try:
        state = composition.from_tensors(tensors)
        if composition.steps_done(state) == step:
            return RunProgress(run, state, devices)
    except (KeyError, ValueError, IndexError, TypeError, RuntimeError, OverflowError) as error:
        run.store.tell_unfit(key, error)
        return None
    run.store.tell_unfit(key, ValueError("it is the state after another step"))
    return None
