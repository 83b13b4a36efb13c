"""Schedules that pick training timesteps: evenly, or more of them at both ends.

Each takes the model's levels and a number of steps, and returns sigmas, noisiest first, ending at 0.
"""

from __future__ import annotations

from itertools import groupby

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels
from prefect_regional_diffusion.sampling_core.tensors.float32 import evenly_spaced


def normal(levels: ModelLevels, steps: int) -> list[float]:
    """Even steps in training timesteps, first to last (k-diffusion `get_sigmas`)."""
    return _even(levels, steps, leave_out_last=False)


def sgm_uniform(levels: ModelLevels, steps: int) -> list[float]:
    """As `normal`, but spaced as if one more step followed, which is left out (Stability generative-models)."""
    return _even(levels, steps, leave_out_last=True)


def _even(levels: ModelLevels, steps: int, *, leave_out_last: bool) -> list[float]:
    if levels.prediction == "flow":
        # These are timesteps after the shift, and `sigma_at` shifts them once more: ComfyUI's way.
        first, last = levels.largest * 1000, levels.smallest * 1000
    else:
        first, last = len(levels.sigmas) - 1.0, 0.0
    count = steps + 1 if leave_out_last else steps
    return [levels.sigma_at(float(t)) for t in evenly_spaced(first, last, count)[:steps]] + [0.0]


def simple(levels: ModelLevels, steps: int) -> list[float]:
    """Every n-th training level, counted from the noisiest (the default of ComfyUI)."""
    stride = len(levels.sigmas) / steps
    return [levels.sigmas[-(1 + int(i * stride))] for i in range(steps)] + [0.0]


def ddim_uniform(levels: ModelLevels, steps: int) -> list[float]:
    """Every n-th training level, counted up from the second (Song et al. 2021, DDIM, as in CompVis' code).

    The stride is rounded down, so that there are more intervals than steps for most numbers that do not
    divide the timesteps: 31 for 30, 333 for 300.
    """
    stride = max(len(levels.sigmas) // steps, 1)
    return [*reversed(levels.sigmas[1::stride]), 0.0]


def beta(levels: ModelLevels, steps: int, a: float = 0.6, b: float = 0.6) -> list[float]:
    """Timesteps at even quantiles of a Beta(a, b) distribution (Lee et al. 2024, "Beta Sampling is All You Need").

    Timesteps that coincide after rounding are taken once, so long schedules have fewer steps than `steps`.
    """
    # Here, because importing it takes a third of a second, and few jobs use this schedule.
    from scipy.special import betaincinv

    last = len(levels.sigmas) - 1
    quantiles = [1 - i / steps for i in range(steps)]
    # The quantile of one half is the middle, 499.5 of 999, up to the last bits of the function: a tie, which goes up.
    timesteps = [round(round(float(betaincinv(a, b, q)) * last, 9)) for q in quantiles]
    return [levels.sigmas[t] for t, _ in groupby(timesteps)] + [0.0]
