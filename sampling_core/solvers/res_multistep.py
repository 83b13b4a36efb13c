"""RES multistep (Zhang et al. 2023, arXiv 2308.02157): exponential integrator of order 2 in -log sigma."""

from __future__ import annotations

import math

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers.ancestral import ancestral_split
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


class RESMultistep(Multistep):
    """`ancestral` solves to a lower level and adds fresh noise; `cfg_pp` steps by the unconditional prediction.

    The ancestral split is that of alpha = 1, for flow models too.
    """

    def __init__(self, *, ancestral: bool = False, cfg_pp: bool = False) -> None:
        self._ancestral, self._cfg_pp = ancestral, cfg_pp
        self.order = 0 if ancestral else 1 if cfg_pp else 2
        self.draws = int(ancestral)

    def _down(self, t: float, s: float) -> tuple[float, float]:
        """Sigma to solve down to, and the amount of noise to add."""
        if not self._ancestral or s == 0:
            return s, 0.0
        split = ancestral_split(Level(1.0, t), Level(1.0, s))
        return split.down.sigma, split.renoise

    def step(self, x: Latent, state: History, ctx: StepContext) -> Step[History]:
        t, s = ctx.t.sigma, ctx.s.sigma
        answer = yield DenoiseRequest(x, ctx.t, unconditional=self._cfg_pp)
        denoised = unconditional(answer) if self._cfg_pp else answer.denoised
        down, up = self._down(t, s)
        if down == 0 or len(state) == 0:
            x_next = answer.denoised + down * ode_derivative(x, denoised, ctx.t)
        else:
            sigma_before = state.level(1).sigma
            h = math.log(t / down)
            ratio = math.log(self._down(sigma_before, t)[0] / sigma_before) / h
            phi_1 = -math.expm1(-h) / h
            phi_2 = (1 - phi_1) / h
            if self._cfg_pp:
                x = x + (answer.denoised - denoised)
            weights = phi_1 - phi_2 / ratio, phi_2 / ratio
            x_next = math.exp(-h) * x + h * (weights[0] * denoised + weights[1] * state.values[-1])
        if up > 0:
            x_next = x_next + up * ctx.noise.fresh(ctx.step_index)
        return x_next, state.with_(denoised, ctx.t, 1)


SAMPLERS: Samplers = {
    "res_multistep": RESMultistep(),
    "res_multistep_cfg_pp": RESMultistep(cfg_pp=True),
    "res_multistep_ancestral": RESMultistep(ancestral=True),
    "res_multistep_ancestral_cfg_pp": RESMultistep(ancestral=True, cfg_pp=True),
}
