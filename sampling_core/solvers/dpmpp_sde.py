"""DPM-Solver++(2S) on the reverse SDE, with a Brownian path (Lu et al. 2022; stochastic as in k-diffusion)."""

from __future__ import annotations

from numpy import float32

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers.ancestral import ancestral_split
from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    NoState,
    OneStep,
    Samplers,
    Step,
    StepContext,
    finite_snr,
    half_log_snr,
    interpolate_log_snr,
    on_gpu,
)
from prefect_regional_diffusion.sampling_core.tensors.float32 import exp, logit
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


def _to(x: Latent, denoised: Latent, t: Level, s: Level, ctx: StepContext) -> Latent:
    """An ancestral step of noise ratio sigma / alpha from `t` to `s`, with the Brownian path's noise."""
    ratio_t, ratio_s = _noise_ratio(t), _noise_ratio(s)
    split = ancestral_split(Level(1.0, ratio_t), Level(1.0, ratio_s))
    decay = split.down.sigma / ratio_t
    x_next = (s.alpha / t.alpha) * decay * x + s.alpha * (1 - decay) * denoised
    return x_next + s.alpha * split.renoise * ctx.noise.brownian_increment(t.sigma, s.sigma)


def _noise_ratio(level: Level) -> float:
    """sigma / alpha, in float32 as k-diffusion has it: an ancestral step from high noise cancels all but a few digits.

    A level of the schedule is given by its sigma, one in between by its log-SNR.
    """
    if level.alpha == 1 - level.sigma:
        return float(exp(logit(level.sigma)))
    return float(exp(-float32(half_log_snr(level))))


class DPMppSDE(OneStep):
    order = 0
    brownian = True

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        t, s = finite_snr(ctx.t, ctx.levels), ctx.s
        denoised = (yield DenoiseRequest(x, t)).denoised
        if s.sigma == 0:
            return denoised, state
        middle = interpolate_log_snr(t, s, 1 / 2)
        denoised_middle = (yield DenoiseRequest(_to(x, denoised, t, middle, ctx), middle)).denoised
        # With the midpoint at one half, the second prediction stands for the whole step.
        return _to(x, denoised_middle, t, s, ctx), state


_SAMPLERS: Samplers = {
    "dpmpp_sde": DPMppSDE(),
}
SAMPLERS = _SAMPLERS | on_gpu(_SAMPLERS)
