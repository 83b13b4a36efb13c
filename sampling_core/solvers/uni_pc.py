"""UniPC (Zhao et al. 2023): unified predictor-corrector of order 3 in -log sigma, B(h) = -h or exp(-h) - 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    History,
    Samplers,
    Step,
    StepContext,
    level_like,
    weighted_sum,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

ORDER = 3
LAST_SIGMA = 0.001
"""Where a run that goes to sigma 0 ends: -log sigma has no value there."""


class UniPCState(NamedTuple):
    """Predictions and their levels as in History, and the corrected latent at the last level."""

    values: torch.Tensor
    levels: torch.Tensor
    corrected: Latent
    moved: Latent


class _Coefficients(NamedTuple):
    """Weights of the differences D1 to the latest prediction, and B(h)."""

    rhos: Sequence[float]
    big_b: float


class UniPC:
    """`bh2` takes B(h) = exp(-h) - 1 instead of -h.

    With `short`, the order is less than the number of steps, as in ComfyUI: a run of one step then only
    rescales its latent.
    """

    order = 2
    """3 between steps of order 3; 2 over a run, which begins and ends with lower orders."""
    draws = 0
    brownian = False

    def __init__(self, *, bh2: bool = False, short: bool = False) -> None:
        self._bh2, self._short = bh2, short

    def init(self, x: Latent) -> UniPCState:
        return UniPCState(*History.empty(x), x, x)

    def step(self, x: Latent, state: UniPCState, ctx: StepContext) -> Step[UniPCState]:
        t = ctx.t
        s = ctx.s if ctx.s.sigma > 0 else level_like(t, LAST_SIGMA)
        history_before = History(state.values, state.levels)
        denoised = (yield DenoiseRequest(x, t)).denoised
        history = history_before.with_(denoised, t, ORDER)
        if self._short and ctx.step_index + ctx.remaining == 0:
            rescaled = x * math.sqrt((1 + s.sigma**2) / (1 + t.sigma**2))
            return rescaled, UniPCState(*history, x, rescaled)
        if len(history_before) > 0:
            order = min(self._order_at(ctx.step_index, ctx), len(history_before))
            # What others made of the latent since the last step is kept: only the correction is added.
            x = x + (self._correct(state.corrected, history_before, denoised, t, order) - state.moved)
        x_next = self._predict(x, history, s, min(self._order_at(ctx.step_index + 1, ctx), len(history)))
        return x_next, UniPCState(*history, x, x_next)

    def _order_at(self, index: int, ctx: StepContext) -> int:
        """The order of the update that ends at `schedule[index]`: it grows from 1 and falls towards the end."""
        steps = ctx.step_index + ctx.remaining + 1
        most = min(ORDER, steps - 1 if self._short else max(steps - 1, 1))
        return index if index < most else min(most, steps + 1 - index)

    def _solve(self, ratios: list[float], h: float, order: int, count: int) -> _Coefficients:
        """Solve R rho = b (equation 9 of the paper) for the first `count` conditions."""
        big_b = math.expm1(-h) if self._bh2 else -h
        rows, right = [], []
        phi, factorial = math.expm1(-h) / -h - 1, 1
        for i in range(1, order + 1):
            rows.append([ratio ** (i - 1) for ratio in ratios])
            right.append(phi * factorial / big_b)
            factorial *= i + 1
            phi = phi / -h - 1 / factorial
        matrix, vector = np.array(rows)[:count, :count], np.array(right)[:count]
        return _Coefficients(np.linalg.solve(matrix, vector).tolist(), big_b)

    def _predict(self, x: Latent, history: History, s: Level, order: int) -> Latent:
        latest, t = history.values[-1], history.level(1)
        h = math.log(t.sigma / s.sigma)
        x_next = (s.sigma / t.sigma) * x - math.expm1(-h) * latest
        ratios, differences = _differences(history, h, order)
        if not differences:
            return x_next
        rhos, big_b = self._solve([*ratios, 1.0], h, order, order - 1)
        # At order 2 any rho solves the conditions; the paper takes one half.
        return x_next - big_b * weighted_sum([0.5] if order == 2 else rhos, differences)

    def _correct(self, x: Latent, history: History, denoised: Latent, s: Level, order: int) -> Latent:
        latest, t = history.values[-1], history.level(1)
        h = math.log(t.sigma / s.sigma)
        ratios, differences = _differences(history, h, order)
        rhos, big_b = self._solve([*ratios, 1.0], h, order, order)
        change = weighted_sum([0.5] if order == 1 else rhos, [*differences, denoised - latest])
        return (s.sigma / t.sigma) * x - math.expm1(-h) * latest - big_b * change


def _differences(history: History, h: float, order: int) -> tuple[list[float], list[Latent]]:
    """Where earlier predictions lie, in steps of h, and their divided differences to the latest."""
    t = history.level(1).sigma
    earlier = range(2, order + 1)
    ratios = [math.log(t / history.level(back).sigma) / h for back in earlier]
    differences = [(history.values[-b] - history.values[-1]) / ratio for b, ratio in zip(earlier, ratios, strict=True)]
    return ratios, differences


SAMPLERS: Samplers = {
    "uni_pc": UniPC(),
    "uni_pc_bh2": UniPC(bh2=True),
}
