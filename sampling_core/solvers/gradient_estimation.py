"""Gradient estimation (Permenter & Yuan 2024): Euler along the slope carried on past its last change."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.solvers.base import (
    History,
    Interval,
    Multistep,
    Query,
    Samplers,
    Step,
    slope,
)
from prefect_regional_diffusion.sampling_core.solvers.cfg_pp import unconditional
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

GAMMA = 2.0
"""How far the change of the slope is carried on (the paper's best value)."""


class GradientEstimation(Multistep):
    """`cfg_pp` goes to the guided prediction with the slope of the unconditional one."""

    order = 1

    def __init__(self, *, cfg_pp: bool = False) -> None:
        self._cfg_pp = cfg_pp

    def step(self, x: Latent, state: History, at: Interval) -> Step[History]:
        answer = yield Query(x, at.t, unconditional=self._cfg_pp)
        here = slope(x, unconditional(answer) if self._cfg_pp else answer.denoised, at.t)
        now = state.with_(here, at.t, 1)
        if at.s.sigma == 0:
            return answer.denoised, now
        moved = answer.denoised + at.s.sigma * here
        if len(state) > 0:
            moved = moved + (GAMMA - 1) * (at.s.sigma - at.t.sigma) * (here - state.values[-1])
        return moved, now


SAMPLERS: Samplers = {
    "gradient_estimation": GradientEstimation(),
    "gradient_estimation_cfg_pp": GradientEstimation(cfg_pp=True),
}
