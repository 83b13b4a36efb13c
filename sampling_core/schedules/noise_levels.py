"""Noise levels: what a model was trained on. The levels that a run walks down are in `schedules`.

Everything is in the variance-exploding parametrisation of Karras et al. 2022 (EDM): a noisy latent is
`alpha * clean + sigma * noise`, with `alpha = 1` for models trained on betas (eps and v prediction)
and `alpha = 1 - sigma` for rectified flow (Liu et al. 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy import float32
from numpy.typing import NDArray

from prefect_regional_diffusion.sampling_core.tensors.float32 import exp, log, rounded

PredictionType = Literal["epsilon", "v_prediction", "flow"]
BetaSchedule = Literal["scaled_linear", "linear"]
BETA_SCHEDULES: dict[str, BetaSchedule] = {"scaled_linear": "scaled_linear", "linear": "linear"}
T = TypeVar("T", float, float32, torch.Tensor)


LEAST_ALPHA_CUMPROD = 4.8973451890853435e-08
"""ComfyUI's stand-in for a cumulative alpha of 0, which gives a sigma of 4519."""


class Level(NamedTuple):
    """One noise level: a latent here is `alpha * clean + sigma * noise`."""

    alpha: float
    sigma: float


@dataclass(frozen=True)
class ModelLevels:
    """The levels that a model was trained on, `sigmas` ascending, one per training timestep."""

    sigmas: tuple[float, ...]
    prediction: PredictionType
    log_sigmas: tuple[float, ...] = ()
    """Logarithms of the levels before they were rounded to float32; empty for flow, which has no use for them."""
    time_shift: float | None = None
    """Flow models whose levels depend on the canvas: the logarithm of their shift, `mu` in FLUX."""

    @property
    def smallest(self) -> float:
        return self.sigmas[0]

    @property
    def largest(self) -> float:
        return self.sigmas[-1]

    @cached_property
    def _logs(self) -> NDArray[float32]:
        return np.array(self.log_sigmas, dtype=float32)

    def level(self, sigma: float) -> Level:
        """The level with this sigma."""
        return Level(1.0 - sigma if self.prediction == "flow" else 1.0, sigma)

    @cached_property
    def _shift(self) -> float:
        """Flow: the shift, recovered from the first level shift / n / (1 + (shift - 1) / n)."""
        n, first = len(self.sigmas), self.smallest
        # Levels are float32, shifts that people use have few digits.
        return round(first * (n - 1) / (1 - first), 5)

    def _of_flow(self, t: T) -> T:
        """Sigma at a share t (0 to 1) of the training timesteps, for flow."""
        return _shifted(t, self._shift) if self.time_shift is None else _time_shifted(t, self.time_shift)

    def sigma_at(self, timestep: float) -> float:
        """Sigma at a (fractional) training timestep: interpolated in log sigma, or by the shift of a flow model.

        Timesteps are 0 .. n - 1, or 0 .. 1000 before the shift for flow. In float32, step for step as ComfyUI
        computes it: a Brownian path moves by the root of a difference, so the last digit can be seen.
        """
        t = float32(timestep)
        if self.prediction == "flow":
            return float(self._of_flow(t / float32(1000)))
        t = min(max(t, float32(0)), float32(len(self.sigmas) - 1))
        low, high = math.floor(t), math.ceil(t)
        part = t - float32(low)
        return float(exp((1 - part) * self._logs[low] + part * self._logs[high]))

    def timestep_of(self, sigma: float) -> float:
        """The timestep that the network gets: nearest in log sigma, or `1000 sigma` for flow.

        Many samplers and the schedule `normal` ask for levels exactly between two timesteps. There the float32
        logarithm, correctly rounded, decides, and of two that are equally near the lower timestep: the recorded
        runs of the original nodes have it so.
        """
        if self.prediction == "flow":
            return sigma * 1000.0
        return float(np.abs(self._logs - log(rounded(sigma))).argmin())

    def percent_to_sigma(self, percent: float) -> float:
        """Sigma after this share (0 to 1) of the way down the training timesteps, as ComfyUI counts it.

        At 0 that is a sigma no run starts above, at 1 it is 0.
        """
        if percent >= 1:
            return 0.0
        if self.prediction == "flow":
            return 1.0 if percent <= 0 else self._of_flow(1 - percent)
        # ComfyUI's stand-in for infinity.
        return 999999999.9 if percent <= 0 else self.sigma_at((1 - percent) * 999)


def beta_levels(
    prediction: PredictionType,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    timesteps: int = 1000,
    schedule: BetaSchedule = "scaled_linear",
    *,
    zero_terminal_snr: bool = False,
) -> ModelLevels:
    """Levels of a model trained with DDPM betas (Ho et al. 2020); `scaled_linear` is Stable Diffusion's.

    With `zero_terminal_snr`, the betas were rescaled until nothing is left of the picture at the last level (Lin et al.
    2024, algorithm 1). Its sigma would be infinite, and is what ComfyUI puts in its place.
    """
    if schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    if zero_terminal_snr:
        root = alphas_cumprod.sqrt()
        alphas_cumprod = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        alphas_cumprod[-1] = LEAST_ALPHA_CUMPROD
    # The network was trained on float32 levels; a timestep is looked up among exactly those.
    sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
    return ModelLevels(tuple(sigmas.float().tolist()), prediction, tuple(sigmas.log().float().tolist()))


def flow_levels(shift: float = 3.0, timesteps: int = 1000) -> ModelLevels:
    """Levels of a rectified-flow model: sigma = shift t / (1 + (shift - 1) t), t = 1/n .. 1 (Esser et al. 2024)."""
    t = (torch.arange(1, timesteps + 1) / timesteps * 1000) / 1000
    return ModelLevels(tuple(_shifted(t, shift).tolist()), "flow")


def time_shifted_levels(mu: float, timesteps: int = 10_000) -> ModelLevels:
    """Levels of a flow model that is shifted by `exp(mu)`: sigma = exp(mu) / (exp(mu) + 1/t - 1), t = 1/n .. 1.

    The same curve as in `flow_levels`, in the order of operations and of the many levels that FLUX has in ComfyUI.
    """
    t = torch.arange(1, timesteps + 1) / timesteps
    return ModelLevels(tuple(_time_shifted(t, mu).tolist()), "flow", time_shift=mu)


def _shifted(t: T, shift: float) -> T:
    return shift * t / (1 + (shift - 1) * t)


def _time_shifted(t: T, mu: float) -> T:
    return math.exp(mu) / (math.exp(mu) + (1 / t - 1))
