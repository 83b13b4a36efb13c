"""ER-SDE-Solver-3 (Cui et al. 2023, arXiv 2309.06169, VP form), with the paper's noise scale 5."""

from __future__ import annotations

import math

import numpy as np

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    History,
    Multistep,
    Samplers,
    Step,
    StepContext,
    finite_snr,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

POINTS = 200
"""Points of the sum that stands for the integrals (the authors' number)."""


def _scale(ratio: np.ndarray | float) -> np.ndarray | float:
    """phi(x) = x (exp(x^0.3) + 10)."""
    return ratio * (np.exp(np.power(ratio, 0.3)) + 10)


def _ratio(level: Level) -> float:
    return level.sigma / level.alpha


class ERSDE(Multistep):
    order = 0
    draws = 1

    def step(self, x: Latent, state: History, ctx: StepContext) -> Step[History]:
        t, s = finite_snr(ctx.t, ctx.levels), ctx.s
        denoised = (yield DenoiseRequest(x, t)).denoised
        history = state.with_(denoised, t, 2)
        if s.sigma == 0:
            return denoised, history
        ratio_t, ratio_s = _ratio(t), _ratio(s)
        scale_s = float(_scale(ratio_s))
        decay = scale_s / float(_scale(ratio_t))
        x_next = (s.alpha / t.alpha) * decay * x + s.alpha * (1 - decay) * denoised
        if len(state) > 0:
            width = ratio_s - ratio_t
            points = ratio_s - np.arange(POINTS) * width / POINTS
            inverse = -width / POINTS / _scale(points)
            ratio_before = _ratio(state.level(1))
            change = (denoised - state.values[-1]) / (ratio_t - ratio_before)
            x_next = x_next + s.alpha * (width + float(np.sum(inverse)) * scale_s) * change
            if len(state) > 1:
                ratio_earlier = _ratio(state.level(2))
                change_before = (state.values[-1] - state.values[-2]) / (ratio_before - ratio_earlier)
                bend = (change - change_before) / ((ratio_t - ratio_earlier) / 2)
                moment = float(np.sum((points - ratio_t) * inverse))
                x_next = x_next + s.alpha * (width**2 / 2 + moment * scale_s) * bend
        std = math.sqrt(max(ratio_s**2 - (ratio_t * decay) ** 2, 0.0))
        return x_next + s.alpha * std * ctx.noise.fresh(ctx.step_index), history


SAMPLERS: Samplers = {
    "er_sde": ERSDE(),
}
