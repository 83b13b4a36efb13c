"""Euler's method (order 1) on the probability-flow ODE: Karras et al. 2022, algorithm 1 without churn."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    NoState,
    OneStep,
    Samplers,
    Step,
    StepContext,
    ddim_step,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


class Euler(OneStep):
    order = 1

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        denoised = (yield DenoiseRequest(x, ctx.t)).denoised
        return ddim_step(x, denoised, ctx.t, ctx.s), state


SAMPLERS: Samplers = {
    "euler": Euler(),
    # DDIM with eta 0 is Euler's method (Song et al. 2020); the originals differ in how they mask it.
    "ddim": Euler(),
}
