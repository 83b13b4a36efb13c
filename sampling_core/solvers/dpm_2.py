"""The midpoint method in log sigma (order 2; DPM-Solver-2, Lu et al. 2022, algorithm 1, as k-diffusion steps it)."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers.ancestral import ancestral_split, renoise, sigma_below
from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    NoState,
    OneStep,
    Samplers,
    Step,
    StepContext,
    ddim_step,
    level_like,
    ode_derivative,
)
from prefect_regional_diffusion.sampling_core.tensors.float32 import exp, log, rounded
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


def _halfway(t: Level, sigma: float) -> Level:
    """The level halfway in log sigma, in float32: its last digit decides which timestep the network gets."""
    middle = rounded((float(log(t.sigma)) + float(log(sigma))) / 2)
    return level_like(t, float(exp(middle)))


def _midpoint(x: Latent, t: Level, s: Level, middle: Level) -> Step[NoState]:
    """From `t` to `s` (sigma > 0) by the slope at the level between them."""
    denoised = (yield DenoiseRequest(x, t)).denoised
    x_middle = x + (middle.sigma - t.sigma) * ode_derivative(x, denoised, t)
    denoised_middle = (yield DenoiseRequest(x_middle, middle)).denoised
    return x + (s.sigma - t.sigma) * ode_derivative(x_middle, denoised_middle, middle), NoState()


def _to_zero(x: Latent, t: Level, s: Level) -> Step[NoState]:
    """A step to sigma 0 is Euler's: log sigma has no midpoint there."""
    denoised = (yield DenoiseRequest(x, t)).denoised
    return ddim_step(x, denoised, t, s), NoState()


class DPM2(OneStep):
    order = 2

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        if ctx.s.sigma == 0:
            return (yield from _to_zero(x, ctx.t, ctx.s))
        return (yield from _midpoint(x, ctx.t, ctx.s, _halfway(ctx.t, ctx.s.sigma)))


class DPM2Ancestral(OneStep):
    """Midpoint steps down, fresh noise up."""

    order = 0
    draws = 1

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        if ctx.s.sigma == 0:
            return (yield from _to_zero(x, ctx.t, ctx.s))
        split = ancestral_split(ctx.t, ctx.s)
        if split.down.sigma == 0:
            # From high noise to very little, all digits cancel.
            x, _ = yield from _to_zero(x, ctx.t, split.down)
        else:
            x, _ = yield from _midpoint(x, ctx.t, split.down, _halfway(ctx.t, sigma_below(ctx.t, ctx.s)))
        return renoise(x, split, ctx), state


SAMPLERS: Samplers = {
    "dpm_2": DPM2(),
    "dpm_2_ancestral": DPM2Ancestral(),
}
