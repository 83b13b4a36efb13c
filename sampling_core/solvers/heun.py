"""Heun's method (order 2): Karras et al. 2022, algorithm 1 without churn."""

from __future__ import annotations

from sampling_core._types import Latent
from sampling_core.levels import Level
from sampling_core.solvers.base import NoState, Query, Step, transfer


class Heun:
    order = 2

    def init(self, x: Latent) -> NoState:
        return NoState()

    def step(self, x: Latent, state: NoState, t: Level, s: Level) -> Step[NoState]:
        denoised = yield Query(x, t)
        guess = transfer(x, denoised, t, s)
        if s.sigma == 0:
            # The slope is not defined at sigma 0, and the Euler step already landed on the prediction.
            return guess, state
        corrected = yield Query(guess, s)
        slope = (x - denoised) / t.sigma
        slope_ahead = (guess - corrected) / s.sigma
        return x + (s.sigma - t.sigma) * (slope + slope_ahead) / 2, state
