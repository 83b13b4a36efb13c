"""A masked pass: one sampler over a stretch of its schedule, as the original nodes call it.

Inside, x lives in model space; a pass takes and returns a *boundary latent* [b, c, h, w], which for
flow models is x / (1 - sigma) and for all others x itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance
from prefect_regional_diffusion.sampling_core.engine.lockstep import RunStep
from prefect_regional_diffusion.sampling_core.noise.initial import add_noise, initial_noise, shape_of
from prefect_regional_diffusion.sampling_core.noise.step_noise import NoNoise, SequentialNoise
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels
from prefect_regional_diffusion.sampling_core.solvers import (
    DenoisedPrediction,
    Interval,
    Noise,
    Query,
    Solver,
    solver_named,
)
from prefect_regional_diffusion.sampling_core.solvers.base import level_like
from prefect_regional_diffusion.sampling_core.solvers.dpm_solver import Seen
from prefect_regional_diffusion.sampling_core.solvers.sa_solver import SASolver
from prefect_regional_diffusion.sampling_core.solvers.uni_pc import LAST_SIGMA, UniPC
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, LatentMask

_AS_RECORDED: dict[str, Solver[Any]] = {
    "sa_solver": SASolver(unfinished=True),
    "sa_solver_pece": SASolver(pece=True, unfinished=True),
    "uni_pc": UniPC(short=True),
    "uni_pc_bh2": UniPC(bh2=True, short=True),
}
"""Methods that the originals run with a fault; it changes pictures, so it is kept here."""


def original_solver(name: str, field: str = "sampler") -> Solver[Any]:
    """The solver as the original nodes run it. Raises BadInput for an unknown name."""
    return _AS_RECORDED.get(name) or solver_named(name, field)


class Inpaint(NamedTuple):
    """What a masked pass sees outside its mask: the latent it began with, noised to the level at hand."""

    mask: LatentMask
    clean: Latent
    noise: Latent

    def hide(self, query: Query) -> Query:
        """The query with everything outside the mask put back."""
        outside = query.level.alpha * self.clean + query.level.sigma * self.noise
        return query._replace(x=query.x * self.mask + outside * (1 - self.mask))

    def show(self, answer: DenoisedPrediction) -> DenoisedPrediction:
        """The answer with everything outside the mask known. The unconditional half stays as it is."""
        return answer._replace(denoised=answer.denoised * self.mask + self.clean * (1 - self.mask))


@dataclass(frozen=True)
class Pass:
    """What a pass does. `mask` [b, 1, h, w] is 1 where the latent may change; without one it all may.

    `noise` is added at the start (zeros: none); the Brownian path of SDE methods spans `path` (sigmas).
    """

    sampler: str
    sigma_schedule: tuple[Level, ...]
    guidance: ClassifierFreeGuidance
    seed: int
    noise: Latent
    mask: LatentMask | None
    levels: ModelLevels
    path: tuple[float, float]

    @cached_property
    def solver(self) -> Solver[Any]:
        return original_solver(self.sampler)

    @cached_property
    def step_noise(self) -> Noise:
        """What stochastic steps draw; nothing for a latent without channels, which is only counted."""
        shape = shape_of(self.noise)
        return (
            SequentialNoise(shape, self.seed, self.solver.draws, *self.path) if self.noise.numel() else NoNoise(shape)
        )

    @cached_property
    def outside_noise(self) -> Latent:
        """The noise that the latent outside of the mask has at every level."""
        # DDIM as ComfyUI has it: Euler's method that re-noises the outside with the next seed's noise.
        return initial_noise(self.seed + 1, shape_of(self.noise)) if self.sampler == "ddim" else self.noise


class PassState(NamedTuple):
    """A pass after `step` steps: x in model space, and the first prediction of the last step."""

    step: int
    x: Latent
    solver: Any
    denoised: Latent


def begin(work: Pass, latent: Latent) -> PassState:
    """The state before the first step, from the boundary latent [b, c, h, w]."""
    x = add_noise(latent, work.noise, work.sigma_schedule[0], work.levels)
    return PassState(0, x, work.solver.init(x), x)


def advance(work: Pass, state: PassState, latent: Latent) -> RunStep[PassState]:
    """The next step of a pass that began with the boundary latent `latent`; adaptive solvers take all steps at once."""
    inpaint = None if work.mask is None else Inpaint(work.mask, latent, work.outside_noise)
    # Under an empty mask nothing of what the network would say is kept.
    unchanged = inpaint is not None and not bool(inpaint.mask.any())
    predictions: list[Latent] = []
    interval = Interval(work.sigma_schedule, state.step, work.levels, work.step_noise)
    solving = work.solver.step(state.x, state.solver, interval)
    try:
        query = next(solving)
        while True:
            if inpaint is not None and unchanged and not query.unconditional:
                prediction = DenoisedPrediction(inpaint.clean)
            else:
                asked = query if inpaint is None else inpaint.hide(query)
                prediction = (yield {0: (asked, work.guidance)})[0]
                prediction = prediction if inpaint is None else inpaint.show(prediction)
            predictions.append(prediction.denoised)
            query = solving.send(prediction)
    except StopIteration as stop:
        x, memory = stop.value
    if isinstance(memory, Seen):
        return PassState(len(work.sigma_schedule) - 1, x, memory, memory.denoised if predictions else x)
    return PassState(state.step + 1, x, memory, predictions[0])


def left_by(work: Pass, state: PassState) -> Latent:
    """The sampler's x after the last step, as a boundary latent."""
    last = work.sigma_schedule[-1]
    # ComfyUI divides by 1 - sigma, also at sigma 1, where nothing of the latent is left.
    return state.x if last.alpha == 1 else state.x / torch.tensor(last.alpha)


def as_walked(sampler: str, sigma_schedule: tuple[Level, ...]) -> tuple[Level, ...]:
    """The schedule as the sampler walks it: UniPC cannot reach sigma 0 and stops just above."""
    if sampler in {"uni_pc", "uni_pc_bh2"} and len(sigma_schedule) > 1 and sigma_schedule[-1].sigma == 0:
        return (*sigma_schedule[:-1], level_like(sigma_schedule[0], LAST_SIGMA))
    return sigma_schedule
