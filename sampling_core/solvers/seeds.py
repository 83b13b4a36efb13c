"""SEEDS-2 and SEEDS-3 (Gonzalez et al. 2023, arXiv 2305.14267): exponential Runge-Kutta methods on the SDE."""

from __future__ import annotations

import math

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
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
    weighted_sum,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


def _sde_step(x: Latent, t: Level, s: Level, h: float, drift: Latent, noise: Latent) -> Latent:
    """x after half log-SNR `h` of the SDE: what survives of it, what predictions add (`drift`), and noise."""
    return (s.sigma / t.sigma) * math.exp(-h) * x + drift + s.sigma * noise


def _phi_1(h: float) -> float:
    """h phi_1(h) of the doubled step of the SDE, negated: 1 - exp(-2h)."""
    return -math.expm1(-2 * h)


def _phi_2(h: float) -> float:
    """h phi_2(h) of the doubled step, negated."""
    return -(math.expm1(-2 * h) + 2 * h) / (-2 * h)


def _stage_noise(noise: Latent | None, fresh: Latent, h: float) -> Latent:
    """The noise of all stages so far, `h` of half log-SNR later: what is left of it, and fresh noise."""
    std = math.sqrt(-math.expm1(-2 * h))
    return std * fresh if noise is None else math.exp(-h) * noise + std * fresh


class SEEDS2(OneStep):
    order = 0
    draws = 2

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        t, s = finite_snr(ctx.t, ctx.levels), ctx.s
        denoised = (yield DenoiseRequest(x, t)).denoised
        if s.sigma == 0:
            return denoised, state
        h = half_log_snr(s) - half_log_snr(t)
        middle = interpolate_log_snr(t, s, 1 / 2)
        noise = _stage_noise(None, ctx.noise.fresh(ctx.step_index, 0), h / 2)
        x_middle = _sde_step(x, t, middle, h / 2, middle.alpha * _phi_1(h / 2) * denoised, noise)
        denoised_middle = (yield DenoiseRequest(x_middle, middle)).denoised
        noise = _stage_noise(noise, ctx.noise.fresh(ctx.step_index, 1), h / 2)
        return _sde_step(x, t, s, h, s.alpha * _phi_1(h) * denoised_middle, noise), state


class SEEDS3(OneStep):
    order = 0
    draws = 3

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        t, s = finite_snr(ctx.t, ctx.levels), ctx.s
        first = (yield DenoiseRequest(x, t)).denoised
        if s.sigma == 0:
            return first, state
        h = half_log_snr(s) - half_log_snr(t)
        third, two_thirds = interpolate_log_snr(t, s, 1 / 3), interpolate_log_snr(t, s, 2 / 3)
        noise = _stage_noise(None, ctx.noise.fresh(ctx.step_index, 0), h / 3)
        guess = _sde_step(x, t, third, h / 3, third.alpha * _phi_1(h / 3) * first, noise)
        second = (yield DenoiseRequest(guess, third)).denoised
        noise = _stage_noise(noise, ctx.noise.fresh(ctx.step_index, 1), h / 3)
        weight = 2 * _phi_2(2 * h / 3)
        mean = weighted_sum([_phi_1(2 * h / 3) - weight, weight], [first, second])
        guess = _sde_step(x, t, two_thirds, 2 * h / 3, two_thirds.alpha * mean, noise)
        last = (yield DenoiseRequest(guess, two_thirds)).denoised
        noise = _stage_noise(noise, ctx.noise.fresh(ctx.step_index, 2), h / 3)
        weight = 1.5 * _phi_2(h)
        mean = weighted_sum([_phi_1(h) - weight, weight], [first, last])
        return _sde_step(x, t, s, h, s.alpha * mean, noise), state


SAMPLERS: Samplers = {
    "seeds_2": SEEDS2(),
    "seeds_3": SEEDS3(),
}
