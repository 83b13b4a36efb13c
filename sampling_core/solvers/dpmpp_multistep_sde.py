"""DPM-Solver++ multistep on the reverse SDE (Lu et al. 2022, appendix; 2M and 3M as in k-diffusion, eta 1)."""

from __future__ import annotations

import math

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    History,
    Multistep,
    Samplers,
    Step,
    StepContext,
    finite_snr,
    half_log_snr,
    on_gpu,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


def _exponential(x: Latent, denoised: Latent, t: Level, s: Level, h: float) -> Latent:
    """The exact solution of the SDE's linear part over half log-SNR `h`, for a constant prediction."""
    return (s.sigma / t.sigma) * math.exp(-h) * x - s.alpha * math.expm1(-2 * h) * denoised


def _noise(t: Level, s: Level, h: float, ctx: StepContext) -> Latent:
    return s.sigma * math.sqrt(-math.expm1(-2 * h)) * ctx.noise.brownian_increment(t.sigma, s.sigma)


class DPMpp2MSDE(Multistep):
    """Two predictions; `heun` weighs their difference by phi_2 instead of the midpoint's one half."""

    order = 0
    brownian = True

    def __init__(self, *, heun: bool = False) -> None:
        self._heun = heun

    def step(self, x: Latent, state: History, ctx: StepContext) -> Step[History]:
        t, s = finite_snr(ctx.t, ctx.levels), ctx.s
        denoised = (yield DenoiseRequest(x, t)).denoised
        history = state.with_(denoised, t, 1)
        if s.sigma == 0:
            return denoised, history
        h = half_log_snr(s) - half_log_snr(t)
        x_next = _exponential(x, denoised, t, s, h)
        if len(state) > 0:
            ratio = (half_log_snr(t) - half_log_snr(state.level(1))) / h
            growth = -math.expm1(-2 * h)
            weight = 1 - growth / (2 * h) if self._heun else growth / 2
            x_next = x_next + s.alpha * weight / ratio * (denoised - state.values[-1])
        return x_next + _noise(t, s, h, ctx), history


class DPMpp3MSDE(Multistep):
    """Three predictions: divided differences of first and second order."""

    order = 0
    brownian = True

    def step(self, x: Latent, state: History, ctx: StepContext) -> Step[History]:
        t, s = finite_snr(ctx.t, ctx.levels), ctx.s
        denoised = (yield DenoiseRequest(x, t)).denoised
        history = state.with_(denoised, t, 2)
        if s.sigma == 0:
            return denoised, history
        lam = half_log_snr(t)
        h = half_log_snr(s) - lam
        x_next = _exponential(x, denoised, t, s, h)
        phi_2 = math.expm1(-2 * h) / (2 * h) + 1
        if len(state) > 0:
            lam_before = half_log_snr(state.level(1))
            r0 = (lam - lam_before) / h
            change = (denoised - state.values[-1]) / r0
            if len(state) > 1:
                r1 = (lam_before - half_log_snr(state.level(2))) / h
                change_before = (state.values[-1] - state.values[-2]) / r1
                bend = (change - change_before) / (r0 + r1)
                phi_3 = phi_2 / (2 * h) - 0.5
                x_next = x_next + s.alpha * (phi_2 * (change + r0 * bend) - phi_3 * bend)
            else:
                x_next = x_next + s.alpha * phi_2 * change
        return x_next + _noise(t, s, h, ctx), history


_SAMPLERS: Samplers = {
    "dpmpp_2m_sde": DPMpp2MSDE(),
    "dpmpp_2m_sde_heun": DPMpp2MSDE(heun=True),
    "dpmpp_3m_sde": DPMpp3MSDE(),
}
SAMPLERS = _SAMPLERS | on_gpu(_SAMPLERS)
