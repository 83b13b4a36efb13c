"""SA-Solver (Xue et al. 2023): stochastic Adams predictor of order 3 and corrector of order 4.

Noise is drawn between 20 % and 80 % of the way down; elsewhere the step is that of the ODE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels
from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    History,
    Samplers,
    Step,
    StepContext,
    finite_snr,
    half_log_snr,
    weighted_sum,
)
from prefect_regional_diffusion.sampling_core.solvers.lagrange import lagrange_basis
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

PREDICTOR, CORRECTOR = 3, 4


class SAState(NamedTuple):
    """Predictions and their levels as in History, the corrected latent at the last level, and its step's noise.

    `moved` is what the last step returned.
    """

    values: torch.Tensor
    levels: torch.Tensor
    corrected: Latent
    noise: Latent
    tau: torch.Tensor
    moved: Latent


def _tau(s: Level, levels: ModelLevels) -> float:
    """Strength of the noise on the way to level s."""
    return 1.0 if levels.percent_to_sigma(0.2) >= s.sigma >= levels.percent_to_sigma(0.8) else 0.0


def _without_noise(ctx: StepContext) -> int:
    """Steps before this one that drew none."""
    return sum(_tau(level, ctx.levels) == 0 for level in ctx.sigma_schedule[1 : ctx.step_index + 1])


def _adams_weights(lambdas: Sequence[float], start: float, stop: float, tau: float) -> list[float]:
    """Integrals of Lagrange polynomials against the SDE's exponential (equations 15 and 18, divided by alpha)."""
    rate, h = 1 + tau**2, stop - start
    basis = lagrange_basis(lambdas, origin=stop)
    # Moments of rate * exp(rate * u) over u in [-h, 0], by parts.
    moments = [-math.expm1(-rate * h)]
    for power in range(1, len(lambdas)):
        moments.append(-math.exp(-rate * h) * (-h) ** power - power / rate * moments[-1])
    return [float(sum(c * m for c, m in zip(p.coef, moments, strict=False))) for p in basis]


class SASolver:
    """`pece` evaluates the corrected latent again.

    With `unfinished`, a run that does not end at sigma 0 returns the latent before its last prediction,
    as ComfyUI 0.3.64 does.
    """

    order = 0
    draws = 1
    brownian = False

    def __init__(self, *, pece: bool = False, unfinished: bool = False) -> None:
        self._pece, self._unfinished = pece, unfinished

    def init(self, x: Latent) -> SAState:
        empty = History.empty(x)
        return SAState(empty.values, empty.levels, x, torch.zeros_like(x), torch.zeros((), dtype=torch.float64), x)

    def step(self, x: Latent, state: SAState, ctx: StepContext) -> Step[SAState]:
        t, s = finite_snr(ctx.t, ctx.levels), ctx.s
        history_before = History(state.values, state.levels)
        denoised = (yield DenoiseRequest(x, t)).denoised
        history = history_before.with_(denoised, t, CORRECTOR)
        # A schedule that ends at sigma 0 is walked with lower orders towards its end.
        ends_at_zero = ctx.sigma_schedule[-1].sigma == 0
        corrector = 0 if len(history_before) == 0 or (s.sigma == 0 and not self._pece) else len(history)
        corrector = min(corrector, ctx.remaining + 1) if ends_at_zero else corrector
        if corrector > 0:
            level_before = history_before.level(1)
            corrected = self._move(state.corrected, history, corrector, level_before, t, float(state.tau)) + state.noise
            # What others made of the latent since the last step is kept: only the correction is added.
            x = x + (corrected - state.moved)
            if self._pece:
                denoised = (yield DenoiseRequest(x, t)).denoised
                history = history_before.with_(denoised, t, CORRECTOR)
        tau, noise = _tau(s, ctx.levels), torch.zeros_like(x)
        if s.sigma == 0:
            return denoised, SAState(*history, x, noise, state.tau, denoised)
        if tau > 0:
            h = half_log_snr(s) - half_log_snr(t)
            noise = (
                s.sigma
                * math.sqrt(-math.expm1(-2 * tau**2 * h))
                * ctx.noise.fresh(ctx.step_index, skipped=_without_noise(ctx))
            )
        state_next = SAState(*history, x, noise, torch.tensor(tau, dtype=torch.float64), x)
        if self._unfinished and ctx.remaining == 0:
            return x, state_next
        predictor = min(PREDICTOR, len(history))
        predictor = min(predictor, ctx.remaining) if ends_at_zero else predictor
        x_next = self._move(x, history, predictor, t, s, tau) + noise
        return x_next, state_next._replace(moved=x_next)

    @staticmethod
    def _move(x: Latent, history: History, order: int, t: Level, s: Level, tau: float) -> Latent:
        """From `t` to `s` by the last `order` predictions, without noise."""
        start, stop = half_log_snr(t), half_log_snr(s)
        lambdas = [half_log_snr(history.level(back)) for back in range(order, 0, -1)]
        weights = [s.alpha * weight for weight in _adams_weights(lambdas, start, stop, tau)]
        decay = (s.sigma / t.sigma) * math.exp(-(tau**2) * (stop - start))
        return decay * x + weighted_sum(weights, list(history.values[-order:]))


SAMPLERS: Samplers = {
    "sa_solver": SASolver(),
    "sa_solver_pece": SASolver(pece=True),
}
