"""DPM-Solver++(2M) (order 2, one evaluation a step): Lu et al. 2022, algorithm 2.

The paper's time is half the log signal-to-noise ratio. Here it is `-log sigma`, which is the same
for alpha = 1 and, unlike the paper's, finite at the first level of a flow model (alpha = 0).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from sampling_core._types import Latent, Scalar
from sampling_core.levels import Level
from sampling_core.solvers.base import Query, Step, transfer


class Previous(NamedTuple):
    """The last step's prediction and its sigma; sigma 0 means that there was no step yet."""

    denoised: Latent
    sigma: Scalar


class DPMpp2M:
    order = 2

    def init(self, x: Latent) -> Previous:
        return Previous(torch.zeros_like(x), torch.zeros((), dtype=torch.float64))

    def step(self, x: Latent, state: Previous, t: Level, s: Level) -> Step[Previous]:
        denoised = yield Query(x, t)
        now = Previous(denoised, torch.tensor(t.sigma, dtype=torch.float64))
        before = float(state.sigma)
        if before == 0 or s.sigma == 0:
            return transfer(x, denoised, t, s), now
        h = math.log(t.sigma / s.sigma)
        h_before = math.log(before / t.sigma)
        slope = (denoised - state.denoised) * (h / (2 * h_before))
        return transfer(x, denoised + slope, t, s), now
