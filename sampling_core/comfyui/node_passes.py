"""Passes: what comes of a node's calls, one after the other on one latent, with the Impact Pack's recovery.

Mirrors KSamplerAdvancedWrapper (Impact Pack 7.10.6) and KSamplerAdvanced (ComfyUI 0.3.64).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import KSamplerCall, lengthened
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.names import CHOOSE_THEIR_STEPS
from prefect_regional_diffusion.sampling_core.noise.initial import LOWEST_SEED, check_seed
from prefect_regional_diffusion.sampling_core.noise.step_noise import span
from prefect_regional_diffusion.sampling_core.schedules import is_whole, original_sigmas
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels
from prefect_regional_diffusion.sampling_core.solvers import BROWNIAN, Solver, solver_named
from prefect_regional_diffusion.sampling_core.solvers.base import level_like
from prefect_regional_diffusion.sampling_core.solvers.sa_solver import SASolver
from prefect_regional_diffusion.sampling_core.solvers.uni_pc import LAST_SIGMA, UniPC

_UNI_PC = ("uni_pc", "uni_pc_bh2")
_WHOLE_PATH = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde_gpu", "dpmpp_2m_sde_gpu", "dpmpp_3m_sde_gpu")
"""SDE samplers whose Brownian path the Impact Pack spans over the whole schedule, not over the call's part of it."""
SPECIAL = (*_UNI_PC, *_WHOLE_PATH)
"""Samplers that get a recovery pass."""
_AS_RECORDED: dict[str, Solver[Any]] = {
    "sa_solver": SASolver(unfinished=True),
    "sa_solver_pece": SASolver(pece=True, unfinished=True),
    "uni_pc": UniPC(short=True),
    "uni_pc_bh2": UniPC(bh2=True, short=True),
}
"""Methods that the originals run with a fault; it changes pictures, so it is kept here."""


class NodePass(NamedTuple):
    """One pass over `sigmas`, not yet run. A call is none of them, one, or with a recovery sampler two."""

    call: KSamplerCall
    """What it is a pass of; its sampler is the pass' own."""
    levels: ModelLevels
    sigmas: tuple[float, ...]
    path: tuple[float, float]
    """The sigmas that its Brownian path spans."""
    last_prediction: bool = False
    """Its result is the last prediction in the place of the sampler's own x."""
    keeps_outside: bool = False
    """What is outside the call's mask stays as it was before the pass."""
    opens: bool = True
    """It is the first one of its call."""

    @property
    def sampler(self) -> str:
        return self.call.config.sampler

    @property
    def solver(self) -> Solver[Any]:
        return _original_solver(self.sampler, "sampler")

    @property
    def steps(self) -> int:
        """Steps that can be saved one by one; methods that choose their own are taken as one."""
        steps = len(self.sigmas) - 1
        return min(steps, 1) if self.sampler in CHOOSE_THEIR_STEPS else steps

    @property
    def sigma_schedule(self) -> tuple[Level, ...]:
        """The levels as the sampler walks them: UniPC cannot reach sigma 0 and stops just above."""
        schedule = tuple(self.levels.level(sigma) for sigma in self.sigmas)
        if self.sampler in _UNI_PC and len(schedule) > 1 and schedule[-1].sigma == 0:
            return (*schedule[:-1], level_like(schedule[0], LAST_SIGMA))
        return schedule


def passes_of(calls: Sequence[KSamplerCall], levels: Mapping[str, ModelLevels]) -> list[NodePass]:
    """All passes of a node in their order; `levels` by model name. Calls that change nothing have none.

    Raises BadInput for unknown samplers and schedulers, impossible seeds, and a recovery without mask.
    """
    node_passes: list[NodePass] = []
    for call in calls:
        passes_of_call = _impact_passes if call.ksampler_denoise is None else _ksampler_passes
        passes = passes_of_call(call, levels[call.config.guidance.model])
        node_passes += [node_pass._replace(opens=number == 0) for number, node_pass in enumerate(passes)]
    return node_passes


def _impact_passes(call: KSamplerCall, levels: ModelLevels) -> list[NodePass]:
    """The passes of a KSamplerAdvancedWrapper: one, and one more for recovery."""
    _check(call, "sampler")
    config, recovery_ratio = call.config, call.recovery_sigma_ratio
    special = config.sampler in SPECIAL and call.recovery_mode != "DISABLE"
    ratio = 1.0 - recovery_ratio if special and call.recovery_mode == "ratio between" else 1.0
    first = _impact_pass(call, levels, ratio * config.sigma_factor) if ratio > 0 else []
    if not special or recovery_ratio <= 0:
        return first
    if call.mask is None:
        raise BadInput("additional_mode", call.recovery_mode, "DISABLE where there is no mask")
    first = [node_pass._replace(keeps_outside=True) for node_pass in first]
    # The recovery pass adds the seed's own noise anew, whatever noise the first one has added.
    recovery = call._replace(config=config._replace(sampler=_recovery_sampler(call)), noise=None)
    _check(recovery, "additional_sampler")
    return first + _impact_pass(recovery, levels, recovery_ratio * config.sigma_factor)


def _recovery_sampler(call: KSamplerCall) -> str:
    """AUTO takes `dpm_fast` after one-step and UniPC methods, else `dpmpp_2m`."""
    if call.recovery_sampler != "AUTO":
        return call.recovery_sampler
    return "dpm_fast" if call.config.sampler in {*_UNI_PC, "dpmpp_sde", "dpmpp_sde_gpu"} else "dpmpp_2m"


def _impact_pass(call: KSamplerCall, levels: ModelLevels, ratio: float) -> list[NodePass]:
    """At most one pass of the Impact Pack: sigmas times `ratio`; without leftover noise, the last prediction."""
    sigma_range = _sigma_range(original_sigmas(levels, call.config.sampler, call.config.scheduler, call.steps), call)
    if sigma_range is None or sigma_range[0] == (0.0,):
        return []
    part, whole_path = sigma_range
    # In float32, as the originals have them: a Brownian path moves by the root of a difference.
    sigmas = tuple((torch.tensor(part, dtype=torch.float32) * ratio).tolist())
    path = whole_path if call.config.sampler in _WHOLE_PATH else _span(sigmas)
    return [NodePass(call, levels, sigmas, path, last_prediction=not call.leftover)]


def _ksampler_passes(call: KSamplerCall, levels: ModelLevels) -> list[NodePass]:
    """The pass of ComfyUI's KSampler (Advanced), if it has one: its result is the sampler's x.

    With a denoise < 1 the schedule is the end of a longer one, and the range counts from there; at 0
    nothing is sampled.
    """
    _check(call, "sampler")
    denoise = call.ksampler_denoise or 0.0
    if denoise <= 0:
        return []
    total = call.steps if is_whole(denoise) else lengthened(call.steps, denoise)
    sigmas = original_sigmas(levels, call.config.sampler, call.config.scheduler, total)
    if not is_whole(denoise):
        sigmas = sigmas[-(call.steps + 1) :]
    sigma_range = _sigma_range(sigmas, call)
    return [] if sigma_range is None else [NodePass(call, levels, sigma_range[0], _span(sigma_range[0]))]


def _sigma_range(sigmas: Sequence[float], call: KSamplerCall) -> tuple[tuple[float, ...], tuple[float, float]] | None:
    """The call's part of the whole schedule, and the span of the whole's Brownian path.

    None where it starts past the end and changes nothing.
    """
    all_sigmas = list(sigmas)
    part = all_sigmas
    if call.end < len(all_sigmas) - 1:
        part = all_sigmas[: call.end + 1]
        if not call.leftover and part:
            # The originals write this zero into the schedule itself, and so shorten the Brownian path.
            part[-1] = all_sigmas[call.end] = 0.0
    if call.start >= len(part) - 1:
        return None
    return tuple(part[call.start :]), _span(all_sigmas)


def _check(call: KSamplerCall, field: str) -> None:
    _original_solver(call.config.sampler, field)
    # Brownian paths have no negative seeds.
    check_seed(call.seed, lowest=0 if call.config.sampler in BROWNIAN else LOWEST_SEED)


def _original_solver(name: str, field: str) -> Solver[Any]:
    """The solver as the original nodes run it. Raises BadInput for an unknown name."""
    return _AS_RECORDED.get(name) or solver_named(name, field)


def _span(sigmas: Sequence[float]) -> tuple[float, float]:
    return span(tuple(Level(1.0, sigma) for sigma in sigmas))
