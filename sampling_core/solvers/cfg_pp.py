"""CFG++ (Chung et al. 2024): go to the guided prediction, with the noise of the unconditional one."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoisedPrediction,
    DenoiseRequest,
    NoState,
    OneStep,
    Samplers,
    Step,
    StepContext,
    ode_derivative,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


def unconditional(answer: DenoisedPrediction) -> Latent:
    """The unconditional prediction for a request with `unconditional=True`."""
    if answer.unconditional is None:
        raise ValueError("the query asked for the unconditional prediction and got none")
    return answer.unconditional


class EulerCfgPP(OneStep):
    """Euler's method with CFG++ (order 1 where guidance is off)."""

    order = 1

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        answer = yield DenoiseRequest(x, ctx.t, unconditional=True)
        noise = ode_derivative(x, ctx.t.alpha * unconditional(answer), ctx.t)
        return ctx.s.alpha * answer.denoised + ctx.s.sigma * noise, state


class EulerAncestralCfgPP(OneStep):
    """The same with fresh noise after every step."""

    order = 0
    draws = 1

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        answer = yield DenoiseRequest(x, ctx.t, unconditional=True)
        if ctx.s.sigma == 0:
            return answer.denoised, state
        noise = ode_derivative(x, ctx.t.alpha * unconditional(answer), ctx.t)
        # The split is made of sigma / alpha, the noise level of a flow latent scaled to alpha = 1.
        s = ctx.s
        ratio_t, ratio_s = ctx.t.sigma / max(ctx.t.alpha, 1e-300), s.sigma / s.alpha
        down = ratio_s**2 / ratio_t
        up = max(ratio_s**2 - down**2, 0.0) ** 0.5
        x_next = s.alpha * answer.denoised + s.alpha * down * noise
        return x_next + s.alpha * up * ctx.noise.fresh(ctx.step_index), state


SAMPLERS: Samplers = {
    "euler_cfg_pp": EulerCfgPP(),
    "euler_ancestral_cfg_pp": EulerAncestralCfgPP(),
}
