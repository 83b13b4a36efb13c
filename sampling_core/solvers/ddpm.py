"""DDPM's own ancestral step (Ho et al. 2020, algorithm 2), in variance-preserving coordinates."""

from __future__ import annotations

import math

from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    NoState,
    OneStep,
    Samplers,
    Step,
    StepContext,
    ode_derivative,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


class DDPM(OneStep):
    order = 0
    draws = 1

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        t, s = ctx.t.sigma, ctx.s.sigma
        denoised = (yield DenoiseRequest(x, ctx.t)).denoised
        alpha_bar_t, alpha_bar_s = 1 / (t * t + 1), 1 / (s * s + 1)
        alpha = alpha_bar_t / alpha_bar_s
        noise = ode_derivative(x, denoised, ctx.t)
        mean = (x * math.sqrt(alpha_bar_t) - (1 - alpha) / math.sqrt(1 - alpha_bar_t) * noise) / math.sqrt(alpha)
        if s == 0:
            return mean, state
        std = math.sqrt((1 - alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t))
        return (mean + std * ctx.noise.fresh(ctx.step_index)) / math.sqrt(alpha_bar_s), state


SAMPLERS: Samplers = {
    "ddpm": DDPM(),
}
