"""Schedules that follow a curve from the model's largest sigma to its smallest, whatever lies between.

Each takes the model's levels and a number of steps, and returns sigmas, noisiest first, ending at 0.
All in float32, because ComfyUI's are: see `ModelLevels.sigma_at`; functions other than sums and products in float64,
rounded once, so that every processor has the same.
"""

from __future__ import annotations

import math

from numpy import float32

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels
from prefect_regional_diffusion.sampling_core.tensors.float32 import evenly_spaced, exp, rounded


def karras(levels: ModelLevels, steps: int, rho: float = 7.0) -> list[float]:
    """Even steps in sigma^(1 / rho) (Karras et al. 2022, equation 5)."""
    low, high = levels.smallest ** (1 / rho), levels.largest ** (1 / rho)
    roots = [high + share * (low - high) for share in evenly_spaced(0, 1, steps)]
    return [*(rounded(float(root) ** rho) for root in roots), 0.0]


def exponential(levels: ModelLevels, steps: int) -> list[float]:
    """Even steps in log sigma (k-diffusion `get_sigmas_exponential`)."""
    logs = evenly_spaced(math.log(levels.largest), math.log(levels.smallest), steps)
    return [*(float(exp(log)) for log in logs), 0.0]


def kl_optimal(levels: ModelLevels, steps: int) -> list[float]:
    """Even steps in arctan sigma, optimal in KL for Gaussian data (Sabour et al. 2024, "Align Your Steps")."""
    # For one step the fraction is 0 / 0. ComfyUI gets NaN, and so it is recorded; `sigma_schedule` refuses it.
    if steps == 1:
        return [math.nan, 0.0]
    ramp = [float32(i) / (steps - 1) for i in range(steps)]
    low, high = math.atan(levels.smallest), math.atan(levels.largest)
    return [*(rounded(math.tan(share * low + (1 - share) * high)) for share in ramp), 0.0]


def linear_quadratic(levels: ModelLevels, steps: int, threshold: float = 0.025) -> list[float]:
    """Half the steps even over the first `threshold` of the way, the others quadratic (Polyak et al. 2024, Movie Gen).

    The quadratic goes on with the slope of the even steps and arrives at 1.
    """
    linear = steps // 2
    if linear == 0:
        return [levels.largest, 0.0]
    slope, rest = threshold / linear, steps - linear
    curvature = (1 - slope * steps) / rest**2
    shares = [slope * i + curvature * max(i - linear, 0) ** 2 for i in range(steps)]
    return [*(float(float32(1 - share) * levels.largest) for share in shares), 0.0]
