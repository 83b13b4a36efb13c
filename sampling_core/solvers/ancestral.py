"""Ancestral sampling: solve below the next level, then add fresh noise up to it (Song et al. 2020, DDPM's variance)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy import float32

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    NoState,
    OneStep,
    Samplers,
    Step,
    StepContext,
    ddim_step,
    level_like,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


class AncestralSplit(NamedTuple):
    """How an ancestral step reaches level s: solve down to `down`, scale by `rescale`, add `renoise` times noise."""

    down: Level
    rescale: float
    renoise: float


def ancestral_split(t: Level, s: Level) -> AncestralSplit:
    """Split a step from `t` to `s` (sigma > 0) so that the whole variance of `s` is made of noise that t lacked.

    One rule serves both kinds of schedule: `sigma_down = sigma_s^2 / sigma_t`. With alpha = 1 that is the
    posterior of DDPM (k-diffusion's ancestral step, eta 1); with alpha = 1 - sigma it is the stochastic
    step for rectified flow.
    """
    if t.alpha == 1:
        # By way of the added noise and in float32, as k-diffusion has it: from high noise, all but a few digits cancel.
        start, stop = float32(t.sigma), float32(s.sigma)
        up = min(stop, np.sqrt(stop * stop * (start * start - stop * stop) / (start * start)))
        return AncestralSplit(Level(1.0, float(np.sqrt(stop * stop - up * up))), 1.0, float(up))
    down = level_like(t, s.sigma**2 / t.sigma)
    rescale = s.alpha / down.alpha
    return AncestralSplit(down, rescale, math.sqrt(max(s.sigma**2 - (down.sigma * rescale) ** 2, 0.0)))


def sigma_below(t: Level, s: Level) -> float:
    """The sigma that `ancestral_split` solves down to, rounded for the look-up of a midpoint between `t` and it.

    That midpoint is `s` but for rounding and, with the schedule `normal`, often lies between two timesteps. Rounded
    in these places it has the timestep that the recorded runs of the original nodes have.
    """
    below = ancestral_split(t, s).down.sigma
    if t.alpha != 1:
        return below
    up = float32(math.sqrt(s.sigma**2 * (t.sigma**2 - s.sigma**2) / t.sigma**2))
    squared = s.sigma**2 - float(up * up)
    # A step that is very long loses all digits of the difference, or more.
    return math.sqrt(squared) if squared > 0 else below


def renoise(x: Latent, split: AncestralSplit, ctx: StepContext) -> Latent:
    """From the split's lower level to `ctx.s`, with fresh noise."""
    return split.rescale * x + split.renoise * ctx.noise.fresh(ctx.step_index)


class EulerAncestral(OneStep):
    """Euler steps down, fresh noise up (k-diffusion)."""

    order = 0
    draws = 1

    def step(self, x: Latent, state: NoState, ctx: StepContext) -> Step[NoState]:
        denoised = (yield DenoiseRequest(x, ctx.t)).denoised
        if ctx.s.sigma == 0:
            return denoised, state
        split = ancestral_split(ctx.t, ctx.s)
        return renoise(ddim_step(x, denoised, ctx.t, split.down), split, ctx), state


SAMPLERS: Samplers = {
    "euler_ancestral": EulerAncestral(),
}
