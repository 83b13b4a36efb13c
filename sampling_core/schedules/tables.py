"""Schedules found by optimisation and published as tables. They know their own sigmas and no model's.

Each takes a number of steps and returns sigmas, noisiest first, ending at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.schedules.gits_rows import ROWS
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import beta_levels

AYSModel = Literal["SD1", "SDXL", "SVD"]
AYS: dict[AYSModel, tuple[float, ...]] = {
    "SD1": (
        *(14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092),
        *(0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    ),
    "SDXL": (
        *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141),
        *(0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    ),
    "SVD": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Sigmas of the ten-step schedules for Stable Diffusion 1.5, SDXL and Stable Video Diffusion."""

MOST_GITS_STEPS = 20
"""Steps of the longest GITS schedule; longer ones are interpolated from it."""


def align_your_steps(model: AYSModel, steps: int) -> list[float]:
    """Ten steps that minimise a bound on the KL divergence (Sabour et al. 2024), else interpolated between them."""
    sigmas = AYS[model]
    return _down_to_zero(sigmas if steps == len(sigmas) - 1 else _interpolated(sigmas, steps))


def gits(steps: int, coefficient: float = 1.2) -> list[float]:
    """Steps of the least total error, weighted by a coefficient 0.8, 0.85 .. 1.5 (GITS, Chen et al. 2024).

    The larger the coefficient, the finer the end. Raises BadInput for another one, and for fewer than 2 steps.
    """
    rows = _gits_rows(round(coefficient, 2))
    if steps < 2:
        raise BadInput("steps", steps, "2 or more with GITS")
    return _down_to_zero(rows[steps - 2] if steps <= MOST_GITS_STEPS else _interpolated(rows[-1], steps))


@cache
def _gits_rows(coefficient: float) -> tuple[tuple[float, ...], ...]:
    if coefficient not in ROWS:
        raise BadInput("coefficient", coefficient, "0.8 to 1.5 in steps of 0.05")
    levels = beta_levels("epsilon")
    inner_rows = [[int(k) for k in row.split()] for row in ROWS[coefficient].strip().splitlines()]
    return tuple(tuple(levels.sigma_at(999 * (1 - k / 100)) for k in (0, *row, 100)) for row in inner_rows)


def _interpolated(sigmas: Sequence[float], steps: int) -> list[float]:
    """As many steps along the same curve: linear in log sigma over the share of the steps taken."""
    logs = [math.log(sigma) for sigma in sigmas]
    interpolated: list[float] = []
    for step in range(steps + 1):
        position = (len(logs) - 1) * step / steps
        i = min(int(position), len(logs) - 2)
        interpolated.append(math.exp(logs[i] + (position - i) * (logs[i + 1] - logs[i])))
    return interpolated


def _down_to_zero(sigmas: Sequence[float]) -> list[float]:
    # The tables end at the smallest trained sigma; runs end at 0.
    return [*sigmas[:-1], 0.0]
