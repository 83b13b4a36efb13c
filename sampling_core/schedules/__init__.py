"""Schedules: how the noise levels that a run walks down are spaced. Sigmas are in the units
of scaled latents.

`sigma_schedule` is how this project takes one, `original_sigmas` how the original nodes do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.names import is_whole
from prefect_regional_diffusion.sampling_core.schedules.curves import exponential, karras, kl_optimal, linear_quadratic
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels
from prefect_regional_diffusion.sampling_core.schedules.tables import AYS, AYSModel, align_your_steps, gits
from prefect_regional_diffusion.sampling_core.schedules.timesteps import beta, ddim_uniform, normal, sgm_uniform, simple

__all__ = ["SCHEDULES", "TABLES", "align_your_steps", "gits", "is_whole", "original_sigmas", "sigma_schedule"]

Schedule = Callable[[ModelLevels, int], list[float]]
"""Levels of a model and a number of steps -> sigmas, noisiest first, ending at 0."""


def _aligned(model: AYSModel) -> Schedule:
    return lambda levels, steps: align_your_steps(model, steps)


TABLES: dict[str, Schedule] = {
    **{f"AYS {model}": _aligned(model) for model in AYS},
    "GITS": lambda levels, steps: gits(steps),
}
"""Schedules with sigmas of their own, for models trained on betas."""

SCHEDULES: dict[str, Schedule] = {
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "karras": karras,
    "exponential": exponential,
    "ddim_uniform": ddim_uniform,
    "beta": beta,
    "normal": normal,
    "linear_quadratic": linear_quadratic,
    "kl_optimal": kl_optimal,
    **TABLES,
}

PENULTIMATE_DROPPED = frozenset({"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"})
"""Samplers that the originals send over a schedule of one step more, without its last level before 0."""


def sigma_schedule(
    levels: ModelLevels, scheduler: str, steps: int, denoise: float = 1.0, *, drop_penultimate: bool = False
) -> tuple[Level, ...]:
    """The levels of a run, noisiest first, ending at sigma 0: `steps + 1` but for `ddim_uniform` and `beta`.

    With `denoise` < 1 the run takes the last `steps` steps of a schedule of `int(steps / denoise)`.
    Raises BadInput for an unknown scheduler or one that does not suit the model, for too few steps, and
    for denoise outside (0, 1].
    """
    if levels.prediction == "flow" and scheduler in TABLES:
        usable = ", ".join(name for name in SCHEDULES if name not in TABLES)
        raise BadInput("scheduler", scheduler, f"{usable} (the model is a flow model)")
    if not 0 < denoise <= 1:
        raise BadInput("denoise", denoise, "more than 0, at most 1")
    # 7 / 0.07 is 99.99999999999999: rounding first keeps the whole number that was meant.
    whole = is_whole(denoise)
    sigmas = _sigmas(levels, scheduler, steps if whole else int(round(steps / denoise, 9)), drop_penultimate)
    if not math.isfinite(sigmas[0]):
        raise BadInput("steps", steps, f"2 or more with {scheduler}")
    return tuple(levels.level(sigma) for sigma in (sigmas if whole else sigmas[-(steps + 1) :]))


@lru_cache(maxsize=256)
def original_sigmas(
    levels: ModelLevels, sampler: str, scheduler: str, steps: int, denoise: float = 1.0
) -> tuple[float, ...]:
    """The sigmas of a run as the original nodes have them (ComfyUI 0.3.64, Impact Pack 7.10.6), as in `sigma_schedule`.

    Differs in the length of the schedule where steps / denoise is a whole number that floating point
    misses, and is empty where denoise is 0. Cached, because every pass of a node needs it again.
    Raises BadInput for an unknown scheduler and steps < 1.
    """
    drop = sampler in PENULTIMATE_DROPPED
    if is_whole(denoise):
        return tuple(_sigmas(levels, scheduler, steps, drop))
    if denoise <= 0:
        return ()
    return tuple(_sigmas(levels, scheduler, int(steps / denoise), drop)[-(steps + 1) :])


def _sigmas(levels: ModelLevels, scheduler: str, steps: int, drop_penultimate: bool) -> list[float]:
    """A whole schedule, or one of a step more without its last level before 0 (see PENULTIMATE_DROPPED)."""
    if scheduler not in SCHEDULES:
        raise BadInput("scheduler", scheduler, ", ".join(SCHEDULES))
    if steps < 1:
        raise BadInput("steps", steps, "1 or more")
    if not drop_penultimate:
        return SCHEDULES[scheduler](levels, steps)
    *sigmas, _, last = SCHEDULES[scheduler](levels, steps + 1)
    return [*sigmas, last]
