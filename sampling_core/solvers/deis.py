"""DEIS (Zhang & Chen 2022, tAB-DEIS of order 3): slopes are interpolated in the time of a VP diffusion.

`tab` extrapolates polynomials in the VP-SDE's time t and integrates them over sigma; t belongs to the
EDM paper's VP schedule from sigma 0.002 at t = 0.001 to sigma 80 at t = 1.
"""

from __future__ import annotations

import math

import numpy as np

from prefect_regional_diffusion.sampling_core.solvers.base import (
    DenoiseRequest,
    History,
    Multistep,
    Samplers,
    Step,
    StepContext,
    ddim_step,
    ode_derivative,
    weighted_sum,
)
from prefect_regional_diffusion.sampling_core.solvers.lagrange import lagrange_basis
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

_FIRST, _LAST, _EPSILON = math.log(0.002**2 + 1), math.log(80.0**2 + 1), 1e-3
_BETA_D = 2 * (_FIRST / _EPSILON - _LAST) / (_EPSILON - 1)
_BETA_MIN = _LAST - _BETA_D / 2
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def _time(sigma: float) -> float:
    """VP time at which the noise level is sigma (Karras et al. 2022, table 1)."""
    return (math.sqrt(_BETA_MIN**2 + 2 * _BETA_D * math.log(sigma**2 + 1)) - _BETA_MIN) / _BETA_D


def _sigma_slope(t: np.ndarray) -> np.ndarray:
    """d sigma / dt of the VP schedule."""
    growth = np.exp(_BETA_D * t**2 / 2 + _BETA_MIN * t)
    return growth * (_BETA_D * t + _BETA_MIN) / (2 * np.sqrt(growth - 1))


SLOPES = 3


class DEIS(Multistep):
    """Order 3 between steps of order 3; 2 over a run, whose first step is Euler's."""

    order = 2

    def step(self, x: Latent, state: History, ctx: StepContext) -> Step[History]:
        denoised = (yield DenoiseRequest(x, ctx.t)).denoised
        slopes = state.with_(ode_derivative(x, denoised, ctx.t), ctx.t, SLOPES)
        if len(slopes) == 1 or ctx.s.sigma == 0:
            return ddim_step(x, denoised, ctx.t, ctx.s), slopes
        start, stop = _time(ctx.t.sigma), _time(ctx.s.sigma)
        basis = lagrange_basis([_time(sigma) for sigma in slopes.levels[:, 1].tolist()], origin=start)
        # Gauss-Legendre: the integrand is smooth between two levels.
        t = start + (stop - start) * (_NODES + 1) / 2
        share = _WEIGHTS * (stop - start) / 2 * _sigma_slope(t)
        weights = [float((share * polynomial(t - start)).sum()) for polynomial in basis]
        return x + weighted_sum(weights, list(slopes.values)), slopes


SAMPLERS: Samplers = {
    "deis": DEIS(),
}
