"""Noise levels: what a model was trained on, and the ladder of levels that a run walks down.

Everything is in the variance-exploding parametrisation of Karras et al. 2022 (EDM): a noisy latent is
`alpha * clean + sigma * noise`, with `alpha = 1` for models trained on betas (eps and v prediction)
and `alpha = 1 - sigma` for rectified flow (Liu et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from sampling_core.errors import BadInput

Prediction = Literal["epsilon", "v_prediction", "flow"]
BetaSchedule = Literal["scaled_linear", "linear"]
BETA_SCHEDULES: dict[str, BetaSchedule] = {"scaled_linear": "scaled_linear", "linear": "linear"}


class Level(NamedTuple):
    """One noise level: a latent here is `alpha * clean + sigma * noise`."""

    alpha: float
    sigma: float


@dataclass(frozen=True)
class ModelLevels:
    """The levels that a model was trained on, `sigmas` ascending, one per training timestep."""

    sigmas: tuple[float, ...]
    prediction: Prediction

    @property
    def smallest(self) -> float:
        return self.sigmas[0]

    @property
    def largest(self) -> float:
        return self.sigmas[-1]

    @cached_property
    def _log_sigmas(self) -> torch.Tensor:
        return torch.tensor(self.sigmas, dtype=torch.float64).log()

    def level(self, sigma: float) -> Level:
        """The level with this sigma."""
        return Level(1.0 - sigma if self.prediction == "flow" else 1.0, sigma)

    def sigma_at(self, timestep: float) -> float:
        """Sigma at a (fractional) training timestep, interpolated in log sigma."""
        t = min(max(timestep, 0.0), len(self.sigmas) - 1.0)
        low, high, part = math.floor(t), math.ceil(t), t - math.floor(t)
        return math.exp((1 - part) * math.log(self.sigmas[low]) + part * math.log(self.sigmas[high]))

    def timestep_of(self, sigma: float) -> float:
        """The timestep the network is told: nearest in log sigma, or `1000 sigma` for flow."""
        if self.prediction == "flow":
            return sigma * 1000.0
        return float((self._log_sigmas - math.log(sigma)).abs().argmin())


def beta_levels(
    prediction: Prediction,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    timesteps: int = 1000,
    schedule: BetaSchedule = "scaled_linear",
) -> ModelLevels:
    """Levels of a model trained with DDPM betas (Ho et al. 2020); `scaled_linear` is Stable Diffusion's."""
    if schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, dim=0)
    # The network was trained on float32 levels; a timestep is looked up among exactly those.
    return ModelLevels(tuple(((1 - kept) / kept).sqrt().float().tolist()), prediction)


def flow_levels(shift: float = 3.0, timesteps: int = 1000) -> ModelLevels:
    """Levels of a rectified-flow model: sigma = shift t / (1 + (shift - 1) t), t = 1/n .. 1 (Esser et al. 2024)."""
    t = [(i + 1) / timesteps for i in range(timesteps)]
    return ModelLevels(tuple(shift * x / (1 + (shift - 1) * x) for x in t), "flow")


def _normal(levels: ModelLevels, steps: int) -> list[float]:
    """Even steps in training timesteps, first to last (k-diffusion `get_sigmas`)."""
    return _even_timesteps(levels, steps, leave_out_last=False)


def _sgm_uniform(levels: ModelLevels, steps: int) -> list[float]:
    """As `normal`, but spaced as if one more step followed, which is left out (Stability generative-models)."""
    return _even_timesteps(levels, steps, leave_out_last=True)


def _even_timesteps(levels: ModelLevels, steps: int, *, leave_out_last: bool) -> list[float]:
    if levels.prediction == "flow":
        first, last = levels.largest * 1000, levels.smallest * 1000
    else:
        first, last = len(levels.sigmas) - 1.0, 0.0
    count = steps + 1 if leave_out_last else steps
    timesteps = torch.linspace(first, last, count, dtype=torch.float64)[:steps].tolist()
    if levels.prediction == "flow":
        shift = _flow_shift(levels)
        return [shift * t / 1000 / (1 + (shift - 1) * t / 1000) for t in timesteps] + [0.0]
    return [levels.sigma_at(t) for t in timesteps] + [0.0]


def _flow_shift(levels: ModelLevels) -> float:
    """Recover the shift from the first level: sigma_0 = shift / n / (1 + (shift - 1) / n)."""
    n, first = len(levels.sigmas), levels.sigmas[0]
    return first * (n - 1) / (1 - first)


def _simple(levels: ModelLevels, steps: int) -> list[float]:
    """Every n-th training level, counted from the noisiest (the common default)."""
    stride = len(levels.sigmas) / steps
    return [levels.sigmas[-(1 + int(i * stride))] for i in range(steps)] + [0.0]


def _karras(levels: ModelLevels, steps: int, rho: float = 7.0) -> list[float]:
    """Karras et al. 2022, equation 5."""
    low, high = levels.smallest ** (1 / rho), levels.largest ** (1 / rho)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64).tolist()
    return [(high + r * (low - high)) ** rho for r in ramp] + [0.0]


def _exponential(levels: ModelLevels, steps: int) -> list[float]:
    """Even steps in log sigma."""
    logs = torch.linspace(math.log(levels.largest), math.log(levels.smallest), steps, dtype=torch.float64)
    return [*logs.exp().tolist(), 0.0]


SCHEDULES: dict[str, Callable[[ModelLevels, int], list[float]]] = {
    "normal": _normal,
    "karras": _karras,
    "exponential": _exponential,
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
}


def ladder(levels: ModelLevels, scheduler: str, steps: int, denoise: float = 1.0) -> tuple[Level, ...]:
    """The `steps + 1` levels of a run, noisiest first, ending at sigma 0.

    With `denoise` < 1 the run takes the last `steps` steps of a schedule of `int(steps / denoise)`.
    Raises BadInput for an unknown scheduler, steps < 1 or denoise outside (0, 1].
    """
    if scheduler not in SCHEDULES:
        raise BadInput("scheduler", scheduler, ", ".join(SCHEDULES))
    if steps < 1:
        raise BadInput("steps", steps, "1 or more")
    if not 0 < denoise <= 1:
        raise BadInput("denoise", denoise, "more than 0, at most 1")
    # 7 / 0.07 is 99.99999999999999: rounding first keeps the whole number that was meant.
    total = steps if denoise > 0.9999 else int(round(steps / denoise, 9))
    sigmas = SCHEDULES[scheduler](levels, total)[-(steps + 1) :]
    return tuple(levels.level(sigma) for sigma in sigmas)
