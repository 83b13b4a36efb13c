"""Euler's method (order 1) on the probability-flow ODE: Karras et al. 2022, algorithm 1 without churn."""

from __future__ import annotations

from sampling_core._types import Latent
from sampling_core.levels import Level
from sampling_core.solvers.base import NoState, Query, Step, transfer


class Euler:
    order = 1

    def init(self, x: Latent) -> NoState:
        return NoState()

    def step(self, x: Latent, state: NoState, t: Level, s: Level) -> Step[NoState]:
        denoised = yield Query(x, t)
        return transfer(x, denoised, t, s), state
