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
        now = state.with_(denoised, t, 2)
        if s.sigma == 0:
            return denoised, now
        here, there = _ratio(t), _ratio(s)
        scale_there = float(_scale(there))
        kept = scale_there / float(_scale(here))
        moved = (s.alpha / t.alpha) * kept * x + s.alpha * (1 - kept) * denoised
        if len(state) > 0:
            width = there - here
            points = there - np.arange(POINTS) * width / POINTS
            inverse = -width / POINTS / _scale(points)
            before = _ratio(state.level(1))
            change = (denoised - state.values[-1]) / (here - before)
            moved = moved + s.alpha * (width + float(np.sum(inverse)) * scale_there) * change
            if len(state) > 1:
                earlier = _ratio(state.level(2))
                change_before = (state.values[-1] - state.values[-2]) / (before - earlier)
                bend = (change - change_before) / ((here - earlier) / 2)
                moment = float(np.sum((points - here) * inverse))
                moved = moved + s.alpha * (width**2 / 2 + moment * scale_there) * bend
        spread = math.sqrt(max(there**2 - (here * kept) ** 2, 0.0))
        return moved + s.alpha * spread * ctx.noise.fresh(ctx.step_index), now


SAMPLERS: Samplers = {
    "er_sde": ERSDE(),
}
