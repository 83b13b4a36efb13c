"""DPM-Solver (Lu et al. 2022) of orders 1 to 3 in t = -log sigma: methods that choose their own steps.

`fast` spends a given number of evaluations on steps of order 3; `adaptive` steps by an error estimate.
A step of theirs is a whole run: from `ctx.t` to the schedule's last positive level.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from itertools import pairwise
from typing import NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoisedPrediction,
    DenoiseRequest,
    Samplers,
    Step,
    StepContext,
    level_like,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

Evaluation = Generator[DenoiseRequest, DenoisedPrediction, Latent]


class Seen(NamedTuple):
    """The prediction at the start of the last step that was tried; zeros before any was."""

    denoised: Latent


def last_positive(sigma_schedule: tuple[Level, ...]) -> Level:
    """The last level with noise: log sigma goes no further."""
    return sigma_schedule[-1] if sigma_schedule[-1].sigma > 0 else sigma_schedule[-2]


def _noise_in(x: Latent, t: float, like: Level) -> Evaluation:
    """The noise prediction for x at time t (equation 3.1's epsilon)."""
    sigma = math.exp(-t)
    return (x - (yield DenoiseRequest(x, level_like(like, sigma))).denoised) / sigma


def _first_order(x: Latent, noise: Latent, t: float, s: float) -> Latent:
    return x - math.exp(-s) * math.expm1(s - t) * noise


def _second_order(x: Latent, noise: Latent, noise_middle: Latent, share: float, t: float, s: float) -> Latent:
    """Algorithm 1; `noise_middle` is the noise prediction `share` of the way."""
    growth = math.exp(-s) * math.expm1(s - t)
    return x - growth * noise - growth / (2 * share) * (noise_middle - noise)


def _third_order(x: Latent, noise: Latent, t: float, s: float, like: Level, noise_third: Latent) -> Evaluation:
    """Algorithm 2 with r1 = 1/3 and r2 = 2/3; `noise_third` is the noise prediction a third of the way."""
    h = s - t
    t_late = t + 2 / 3 * h
    bend = math.exp(-t_late) * 2 * (math.expm1(2 / 3 * h) / (2 / 3 * h) - 1)
    guess = _first_order(x, noise, t, t_late) - bend * (noise_third - noise)
    noise_late = yield from _noise_in(guess, t_late, like)
    return _first_order(x, noise, t, s) - math.exp(-s) * 1.5 * (math.expm1(h) / h - 1) * (noise_late - noise)


class DPMFast:
    """As many evaluations as the run has steps, in steps of order 3 and a shorter last one (section 3.4)."""

    order = 3
    draws = 0
    brownian = False

    def init(self, x: Latent) -> Seen:
        return Seen(torch.zeros_like(x))

    def step(self, x: Latent, state: Seen, ctx: StepContext) -> Step[Seen]:
        like = ctx.t
        start, stop = -math.log(ctx.t.sigma), -math.log(last_positive(ctx.sigma_schedule).sigma)
        evaluations = ctx.remaining + 1
        count = evaluations // 3 + 1
        rest = evaluations % 3
        orders = [3] * (count - 1) + [rest] if rest else [3] * (count - 2) + [2, 1]
        times = [start + (stop - start) * i / count for i in range(count + 1)]
        for order, (t, s) in zip(orders, pairwise(times), strict=True):
            noise = yield from _noise_in(x, t, like)
            state = Seen(x - math.exp(-t) * noise)
            if order == 1:
                x = _first_order(x, noise, t, s)
                continue
            share = 1 / order
            t_middle = t + share * (s - t)
            noise_middle = yield from _noise_in(_first_order(x, noise, t, t_middle), t_middle, like)
            if order == 2:
                x = _second_order(x, noise, noise_middle, share, t, s)
            else:
                x = yield from _third_order(x, noise, t, s, like, noise_middle)
        return x, state


class DPMAdaptive:
    """Order 3 with an order-2 estimate of its error, steps by an integral controller (appendix C)."""

    order = 3
    draws = 0
    brownian = False
    absolute, relative, first_step, safety = 0.0078, 0.05, 0.05, 0.81

    def init(self, x: Latent) -> Seen:
        return Seen(torch.zeros_like(x))

    def step(self, x: Latent, state: Seen, ctx: StepContext) -> Step[Seen]:
        like = ctx.t
        t, stop = -math.log(ctx.t.sigma), -math.log(last_positive(ctx.sigma_schedule).sigma)
        h, x_before = self.first_step, x
        while t < stop - 1e-5:
            s = min(stop, t + h)
            noise = yield from _noise_in(x, t, like)
            state = Seen(x - math.exp(-t) * noise)
            t_third = t + (s - t) / 3
            noise_third = yield from _noise_in(_first_order(x, noise, t, t_third), t_third, like)
            low = _second_order(x, noise, noise_third, 1 / 3, t, s)
            high = yield from _third_order(x, noise, t, s, like, noise_third)
            tolerance = (self.relative * torch.maximum(low.abs(), x_before.abs())).clamp(min=self.absolute)
            error = float(((low - high) / tolerance).square().mean().sqrt())
            factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / self.order) - 1)
            if factor >= self.safety:
                x_before, x, t = low, high, s
            h *= factor
        return x, state


SAMPLERS: Samplers = {
    "dpm_fast": DPMFast(),
    "dpm_adaptive": DPMAdaptive(),
}
