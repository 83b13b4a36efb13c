"""DPM-Solver++(2M) (order 2, one evaluation a step): Lu et al. 2022, algorithm 2.

The paper's time is half the log signal-to-noise ratio. Here it is `-log sigma`, which is the same
for alpha = 1 and, unlike the paper's, finite at the first level of a flow model (alpha = 0).
"""

from __future__ import annotations

import math

from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    History,
    Multistep,
    Samplers,
    Step,
    StepContext,
    ddim_step,
)
from prefect_regional_diffusion.sampling_core.solvers.cfg_pp import unconditional
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


def _slope_weight(history: History, ctx: StepContext) -> float:
    """h / (2 h_before): how far the last change of the prediction is carried on."""
    return math.log(ctx.t.sigma / ctx.s.sigma) / (2 * math.log(history.level(1).sigma / ctx.t.sigma))


class DPMpp2M(Multistep):
    order = 2

    def step(self, x: Latent, state: History, ctx: StepContext) -> Step[History]:
        denoised = (yield DenoiseRequest(x, ctx.t)).denoised
        history = state.with_(denoised, ctx.t, 1)
        if len(state) == 0 or ctx.s.sigma == 0:
            return ddim_step(x, denoised, ctx.t, ctx.s), history
        extrapolated = denoised + _slope_weight(state, ctx) * (denoised - state.values[-1])
        return ddim_step(x, extrapolated, ctx.t, ctx.s), history


class DPMpp2MCfgPP(Multistep):
    """DPM++ 2M with CFG++ (Chung et al. 2024): the noise in x is that of the unconditional prediction."""

    order = 1

    def step(self, x: Latent, state: History, ctx: StepContext) -> Step[History]:
        answer = yield DenoiseRequest(x, ctx.t, unconditional=True)
        denoised_uncond = unconditional(answer)
        ratio = ctx.s.sigma / ctx.t.sigma
        x_next = answer.denoised + ratio * (x - denoised_uncond)
        if len(state) > 0 and ctx.s.sigma > 0:
            x_next = x_next + (1 - ratio) * _slope_weight(state, ctx) * (answer.denoised - state.values[-1])
        return x_next, state.with_(denoised_uncond, ctx.t, 1)


SAMPLERS: Samplers = {
    "dpmpp_2m": DPMpp2M(),
    "dpmpp_2m_cfg_pp": DPMpp2MCfgPP(),
}
