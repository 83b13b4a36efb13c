"""Ancestral sampling: go further down than asked, then add fresh noise back up (Song et al. 2020, DDPM's variance)."""

from __future__ import annotations

import math
from typing import NamedTuple

from numpy import float32

from sampling_core._types import Latent
from sampling_core.levels import Level
from sampling_core.solvers.base import Interval, NoState, OneStep, Query, Step, same_kind, transfer


class Descent(NamedTuple):
    """How an ancestral step reaches level s: solve down to `down`, scale by `rescale`, add `renoise` times noise."""

    down: Level
    rescale: float
    renoise: float


def descend(t: Level, s: Level) -> Descent:
    """Split a step from `t` to `s` (sigma > 0) so that the whole variance of `s` is made of noise that t lacked.

    One rule serves both kinds of ladder: `sigma_down = sigma_s^2 / sigma_t`. With alpha = 1 that is the
    posterior of DDPM (k-diffusion's ancestral step, eta 1); with alpha = 1 - sigma it is the stochastic
    step for rectified flow.
    """
    if t.alpha == 1:
        # By way of the added noise, as k-diffusion has it, and rounded to float32 in the same places: the midpoint of
        # such a step is `sigma_s`, which often lies between two of the model's timesteps, and the recorded runs of
        # the originals have the one that these roundings lead to.
        start, stop = t.sigma**2, s.sigma**2
        up = min(float32(math.sqrt(stop * (start - stop) / start)), float32(s.sigma))
        return Descent(Level(1.0, math.sqrt(float32(stop - float(up * up)))), 1.0, float(up))
    down = same_kind(t, s.sigma**2 / t.sigma)
    rescale = s.alpha / down.alpha
    return Descent(down, rescale, math.sqrt(max(s.sigma**2 - (down.sigma * rescale) ** 2, 0.0)))


def climb(x: Latent, descent: Descent, at: Interval) -> Latent:
    """From the descent's lower level to `at.s`, with fresh noise."""
    return descent.rescale * x + descent.renoise * at.noise.fresh(at.step_index)


class EulerAncestral(OneStep):
    """Euler steps down, fresh noise up (k-diffusion)."""

    order = 0
    draws = 1

    def step(self, x: Latent, state: NoState, at: Interval) -> Step[NoState]:
        denoised = (yield Query(x, at.t)).denoised
        if at.s.sigma == 0:
            return denoised, state
        descent = descend(at.t, at.s)
        return climb(transfer(x, denoised, at.t, descent.down), descent, at), state
