"""Gradient estimation (Permenter & Yuan 2024): Euler along the slope carried on past its last change."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    History,
    Multistep,
    Samplers,
    Step,
    StepContext,
    ode_derivative,
)
from prefect_regional_diffusion.sampling_core.solvers.cfg_pp import unconditional
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

GAMMA = 2.0
"""How far the change of the slope is carried on (the paper's best value)."""


class GradientEstimation(Multistep):
    """`cfg_pp` goes to the guided prediction with the slope of the unconditional one."""

    order = 1

    def __init__(self, *, cfg_pp: bool = False) -> None:
        self._cfg_pp = cfg_pp

    def step(self, x: Latent, state: History, ctx: StepContext) -> Step[History]:
        answer = yield DenoiseRequest(x, ctx.t, unconditional=self._cfg_pp)
        slope = ode_derivative(x, unconditional(answer) if self._cfg_pp else answer.denoised, ctx.t)
        history = state.with_(slope, ctx.t, 1)
        if ctx.s.sigma == 0:
            return answer.denoised, history
        x_next = answer.denoised + ctx.s.sigma * slope
        if len(state) > 0:
            x_next = x_next + (GAMMA - 1) * (ctx.s.sigma - ctx.t.sigma) * (slope - state.values[-1])
        return x_next, history


SAMPLERS: Samplers = {
    "gradient_estimation": GradientEstimation(),
    "gradient_estimation_cfg_pp": GradientEstimation(cfg_pp=True),
}
