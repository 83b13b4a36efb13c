"""DPM-Solver++(2S) steps down, fresh noise up (Lu et al. 2022, algorithm 1; ancestral as in k-diffusion)."""

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
    interpolate_log_snr,
    level_like,
)
from prefect_regional_diffusion.sampling_core.solvers.cfg_pp import unconditional
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

_BELOW_ONE = 0.9999
"""Where a flow model's first step looks, in the place of a midpoint in log-SNR that does not exist."""


def _middle(t: Level, s: Level) -> Level:
    """The level halfway in log-SNR."""
    if t.alpha == 0:
        return level_like(t, _BELOW_ONE)
    return interpolate_log_snr(t, s, 1 / 2)


class DPMpp2SAncestral(OneStep):
    order = 0
    draws = 1

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        t = ctx.t
        denoised = (yield DenoiseRequest(x, t)).denoised
        if ctx.s.sigma == 0:
            return ddim_step(x, denoised, t, ctx.s), state
        split = ancestral_split(t, ctx.s)
        if split.down.sigma == 0:
            # From high noise to very little, all digits cancel, and there is no midpoint.
            return renoise(denoised, split, ctx), state
        middle = _middle(t, level_like(t, sigma_below(t, ctx.s)))
        denoised_middle = (yield DenoiseRequest(ddim_step(x, denoised, t, middle), middle)).denoised
        return renoise(ddim_step(x, denoised_middle, t, split.down), split, ctx), state


class DPMpp2SAncestralCfgPP(OneStep):
    """The same with CFG++ (Chung et al. 2024), as ComfyUI 0.3.64 has it: with alpha = 1 for flow models too."""

    order = 0
    draws = 1

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        t, s = Level(1.0, ctx.t.sigma), Level(1.0, ctx.s.sigma)
        answer = yield DenoiseRequest(x, ctx.t, unconditional=True)
        denoised = answer.denoised
        if s.sigma == 0:
            return denoised, state
        split = ancestral_split(t, s)
        if split.down.sigma == 0:
            return renoise(denoised, split, ctx), state
        middle = interpolate_log_snr(t, Level(1.0, sigma_below(t, s)), 1 / 2)
        shifted = x + (denoised - unconditional(answer))
        answer_middle = yield DenoiseRequest(
            ddim_step(shifted, denoised, t, middle), level_like(ctx.t, middle.sigma), unconditional=True
        )
        # The whole step is shifted by what the second evaluation says without the prompt.
        shifted = x + (denoised - unconditional(answer_middle))
        return renoise(ddim_step(shifted, answer_middle.denoised, t, split.down), split, ctx), state


SAMPLERS: Samplers = {
    "dpmpp_2s_ancestral": DPMpp2SAncestral(),
    "dpmpp_2s_ancestral_cfg_pp": DPMpp2SAncestralCfgPP(),
}
