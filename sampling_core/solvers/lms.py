"""Linear multistep (Adams-Bashforth on uneven sigmas, order 4), as k-diffusion uses it."""

from __future__ import annotations

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
from prefect_regional_diffusion.sampling_core.solvers.lagrange import lagrange_basis
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

SLOPES = 4


class LMS(Multistep):
    """Order 4 between steps of order 4; 2 over a run, whose first step is Euler's."""

    order = 2

    def step(self, x: Latent, state: History, ctx: StepContext) -> Step[History]:
        denoised = (yield DenoiseRequest(x, ctx.t)).denoised
        slopes = state.with_(ode_derivative(x, denoised, ctx.t), ctx.t, SLOPES)
        if ctx.s.sigma == 0:
            return denoised, slopes
        start, stop = ctx.t.sigma, ctx.s.sigma
        basis = lagrange_basis(slopes.levels[:, 1].tolist(), origin=start)
        weights = [float(polynomial.integ()(stop - start)) for polynomial in basis]
        return x + weighted_sum(weights, list(slopes.values)), slopes


SAMPLERS: Samplers = {
    "lms": LMS(),
}
