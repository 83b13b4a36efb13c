"""The midpoint method in log sigma (order 2; DPM-Solver-2, Lu et al. 2022, algorithm 1, as k-diffusion steps it)."""

from __future__ import annotations

from sampling_core._types import Latent
from sampling_core.float32 import exp, log, rounded
from sampling_core.levels import Level
from sampling_core.solvers.ancestral import climb, descend
from sampling_core.solvers.base import Interval, NoState, OneStep, Query, Step, same_kind, slope, transfer


def midpoint(x: Latent, t: Level, s: Level) -> Step[NoState]:
    """From `t` to `s` by the slope at their geometric mean; by Euler's method to sigma 0."""
    denoised = (yield Query(x, t)).denoised
    if s.sigma == 0:
        return transfer(x, denoised, t, s), NoState()
    # Halfway in log sigma, in float32: the last digit decides which timestep the network is told.
    halfway = rounded((float(log(t.sigma)) + float(log(s.sigma))) / 2)
    middle = same_kind(t, float(exp(halfway)))
    halfway = x + (middle.sigma - t.sigma) * slope(x, denoised, t)
    there = (yield Query(halfway, middle)).denoised
    return x + (s.sigma - t.sigma) * slope(halfway, there, middle), NoState()


class DPM2(OneStep):
    order = 2

    def step(self, x: Latent, state: NoState, at: Interval) -> Step[NoState]:
        return (yield from midpoint(x, at.t, at.s))


class DPM2Ancestral(OneStep):
    """Midpoint steps down, fresh noise up."""

    order = 0
    draws = 1

    def step(self, x: Latent, state: NoState, at: Interval) -> Step[NoState]:
        if at.s.sigma == 0:
            return (yield from midpoint(x, at.t, at.s))
        descent = descend(at.t, at.s)
        x, _ = yield from midpoint(x, at.t, descent.down)
        return climb(x, descent, at), state
