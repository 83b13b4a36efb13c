"""Consistency sampling (Luo et al. 2023, latent consistency models, algorithm 3): predict, then noise anew."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    NoState,
    OneStep,
    Samplers,
    Step,
    StepContext,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


class LCM(OneStep):
    order = 0
    draws = 1

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        denoised = (yield DenoiseRequest(x, ctx.t)).denoised
        if ctx.s.sigma == 0:
            return denoised, state
        return ctx.s.alpha * denoised + ctx.s.sigma * ctx.noise.fresh(ctx.step_index), state


SAMPLERS: Samplers = {
    "lcm": LCM(),
}
