"""Heun's method (order 2): Karras et al. 2022, algorithm 1 without churn."""

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


class Heun(OneStep):
    order = 2

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        t, s = ctx.t, ctx.s
        denoised = (yield DenoiseRequest(x, t)).denoised
        guess = ddim_step(x, denoised, t, s)
        if s.sigma == 0:
            # The slope is not defined at sigma 0, and the Euler step already landed on the prediction.
            return guess, state
        corrected = (yield DenoiseRequest(guess, s)).denoised
        return x + (s.sigma - t.sigma) * (
            ode_derivative(x, denoised, t) + ode_derivative(guess, corrected, s)
        ) / 2, state


SAMPLERS: Samplers = {
    "heun": Heun(),
}
