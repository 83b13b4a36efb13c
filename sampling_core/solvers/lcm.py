"""Consistency sampling (Luo et al. 2023, latent consistency models, algorithm 3): predict, then noise anew."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.solvers.base import Interval, NoState, OneStep, Query, Samplers, Step
from prefect_regional_diffusion.sampling_core.tensors.types import Latent


class LCM(OneStep):
    order = 0
    draws = 1

    def step(self, x: Latent, state: NoState, at: Interval) -> Step[NoState]:
        denoised = (yield Query(x, at.t)).denoised
        if at.s.sigma == 0:
            return denoised, state
        return at.s.alpha * denoised + at.s.sigma * at.noise.fresh(at.step_index), state


SAMPLERS: Samplers = {
    "lcm": LCM(),
}
