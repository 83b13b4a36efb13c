"""Heun++ (sd-webui-samplers-scheduler): slopes at this, the next and the level after it, weighted by sigma.

The weights tend to a first-order method's: they depend on where the run started, not on the step.
"""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    NoState,
    OneStep,
    Samplers,
    Step,
    StepContext,
    ddim_step,
    ode_derivative,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


class HeunPP2(OneStep):
    order = 1

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        t, s = ctx.t, ctx.s
        first, last = ctx.sigma_schedule[0].sigma, ctx.sigma_schedule[-1].sigma
        denoised = (yield DenoiseRequest(x, t)).denoised
        slope = ode_derivative(x, denoised, t)
        if s.sigma == last:
            return ddim_step(x, denoised, t, s), state
        x_s = x + (s.sigma - t.sigma) * slope
        next_slope = ode_derivative(x_s, (yield DenoiseRequest(x_s, s)).denoised, s)
        after = ctx.sigma_schedule[ctx.step_index + 2]
        if after.sigma == last:
            share = s.sigma / (2 * first)
            mean = (1 - share) * slope + share * next_slope
        else:
            x_after = x_s + (after.sigma - s.sigma) * next_slope
            last_slope = ode_derivative(x_after, (yield DenoiseRequest(x_after, after)).denoised, after)
            share, share_after = s.sigma / (3 * first), after.sigma / (3 * first)
            mean = (1 - share - share_after) * slope + share * next_slope + share_after * last_slope
        return x + (s.sigma - t.sigma) * mean, state


SAMPLERS: Samplers = {
    "heunpp2": HeunPP2(),
}
