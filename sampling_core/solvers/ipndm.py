"""Improved pseudo numerical methods (Zhang & Chen 2022, iPNDM): Adams-Bashforth, for even and for uneven steps."""

from __future__ import annotations

from itertools import pairwise

from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    History,
    Multistep,
    Samplers,
    Step,
    StepContext,
    ode_derivative,
    weighted_sum,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

_EVEN = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights for equal steps, by number of slopes, latest first."""


class IPNDM(Multistep):
    """Weights for equal steps, whatever the steps are: order 4 on schedules even in sigma only.

    With `uneven` they are for the steps as they are (diff-sampler).
    """

    def __init__(self, *, uneven: bool = False) -> None:
        self._uneven = uneven
        self.order = 2 if uneven else 1

    def step(self, x: Latent, state: History, ctx: StepContext) -> Step[History]:
        denoised = (yield DenoiseRequest(x, ctx.t)).denoised
        slopes = state.with_(ode_derivative(x, denoised, ctx.t), ctx.t, 4)
        if ctx.s.sigma == 0:
            return denoised, slopes
        sigmas = [ctx.s.sigma, *reversed(slopes.levels[:, 1].tolist())]
        steps = [a - b for a, b in pairwise(sigmas)]
        weights = _for_uneven(steps) if self._uneven else _EVEN[len(steps) - 1]
        return x + steps[0] * weighted_sum(weights, list(slopes.values.flip(0))), slopes


def _for_uneven(h: list[float]) -> list[float]:
    """Weights by the step sizes: the coming one, the last one, and so on; latest slope first."""
    if len(h) == 1:
        return [1.0]
    a = h[0] / h[1]
    if len(h) == 2:
        return [1 + a / 2, -a / 2]
    r = h[1] / h[2]
    bend = (1 - h[0] / (3 * (h[0] + h[1])) * (h[0] * (h[0] + h[1])) / (h[1] * (h[1] + h[2]))) / 2
    weights = [1 + a / 2 + bend, -a / 2 - (1 + r) * bend, r * bend]
    if len(h) == 3:
        return weights
    far = h[1] * (h[1] + h[2]) / (h[2] * (h[2] + h[3]))
    twist = (
        (1 - h[0] / (3 * (h[0] + h[1]))) / 2 + (1 - h[0] / (2 * (h[0] + h[1]))) * h[0] / (6 * (h[0] + h[1] + h[2]))
    ) * (h[0] * (h[0] + h[1]) * (h[0] + h[1] + h[2]) / (h[1] * (h[1] + h[2]) * (h[1] + h[2] + h[3])))
    third = [twist, -(1 + r + far) * twist, (r + far * (1 + h[2] / h[3])) * twist, -far * r * twist]
    return [a + b for a, b in zip([*weights, 0.0], third, strict=True)]


SAMPLERS: Samplers = {
    "ipndm": IPNDM(),
    "ipndm_v": IPNDM(uneven=True),
}
