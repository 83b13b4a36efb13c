"""Schedules that follow a curve from the model's largest sigma to its smallest, whatever lies between.

Each takes the model's levels and a number of steps, and returns sigmas, noisiest first, ending at 0.
All in float32, because ComfyUI's are: see `ModelLevels.sigma_at`.
"""

from __future__ import annotations

import math

import torch

from sampling_core.levels import ModelLevels


def karras(levels: ModelLevels, steps: int, rho: float = 7.0) -> list[float]:
    """Even steps in sigma^(1 / rho) (Karras et al. 2022, equation 5)."""
    low, high = levels.smallest ** (1 / rho), levels.largest ** (1 / rho)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float32)
    return [*((high + ramp * (low - high)) ** rho).tolist(), 0.0]


def exponential(levels: ModelLevels, steps: int) -> list[float]:
    """Even steps in log sigma (k-diffusion `get_sigmas_exponential`)."""
    logs = torch.linspace(math.log(levels.largest), math.log(levels.smallest), steps, dtype=torch.float32)
    return [*logs.exp().tolist(), 0.0]


def kl_optimal(levels: ModelLevels, steps: int) -> list[float]:
    """Even steps in arctan sigma, optimal in KL for Gaussian data (Sabour et al. 2024, "Align Your Steps")."""
    # One step has no share of the way to be at: 0 / 0. ComfyUI computes on and gets NaN, and so it is
    # recorded; `ladder` refuses it.
    ramp = torch.arange(steps, dtype=torch.float32) / (steps - 1)
    angles = ramp * math.atan(levels.smallest) + (1 - ramp) * math.atan(levels.largest)
    return [*angles.tan().tolist(), 0.0]


def linear_quadratic(levels: ModelLevels, steps: int, threshold: float = 0.025) -> list[float]:
    """Half the steps even over the first `threshold` of the way, the others quadratic (Polyak et al. 2024, Movie Gen).

    The quadratic goes on with the slope of the even steps and arrives at 1.
    """
    linear = steps // 2
    if linear == 0:
        return [levels.largest, 0.0]
    slope, rest = threshold / linear, steps - linear
    curvature = (1 - slope * steps) / rest**2
    way = [slope * i + curvature * max(i - linear, 0) ** 2 for i in range(steps)]
    return [*(torch.tensor([1 - share for share in way], dtype=torch.float32) * levels.largest).tolist(), 0.0]
