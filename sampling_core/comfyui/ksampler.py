"""Calls: how the Impact Pack and ComfyUI run a sampler over a range of steps, with the Impact Pack's recovery.

Mirrors KSamplerAdvancedWrapper and KSamplerWrapper (Impact Pack 7.10.6) and KSamplerAdvanced (ComfyUI 0.3.64).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.comfyui.masked_pass import (
    Pass,
    PassState,
    as_walked,
    left_by,
    original_solver,
)
from prefect_regional_diffusion.sampling_core.comfyui.masks import composite, noise_mask
from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.names import CHOOSE_THEIR_STEPS, RecoveryMode
from prefect_regional_diffusion.sampling_core.noise.initial import LOWEST_SEED, InitialNoise, check_seed
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape, span
from prefect_regional_diffusion.sampling_core.schedules import is_whole, original_sigmas
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels
from prefect_regional_diffusion.sampling_core.solvers import BROWNIAN
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask, Latent

_WHOLE_PATH = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde_gpu", "dpmpp_2m_sde_gpu", "dpmpp_3m_sde_gpu")
"""SDE samplers whose Brownian path the Impact Pack spans over the whole schedule, not over the call's part of it."""
SPECIAL = ("uni_pc", "uni_pc_bh2", *_WHOLE_PATH)
"""Samplers that get a recovery pass."""


class SamplerConfig(NamedTuple):
    """A KSAMPLER_ADVANCED: model and guidance, sampler and scheduler, without steps or seed."""

    sampler: str
    scheduler: str
    guidance: ClassifierFreeGuidance
    sigma_factor: float = 1.0
    """All sigmas of a call are multiplied by it."""


class Recovery(NamedTuple):
    """The second pass of special samplers: `additional_mode`, `additional_sampler`, `additional_sigma_ratio`.

    `ratio additional` repeats the step's sigmas times `ratio`; `ratio between` gives the first pass
    `1 - ratio` of them.
    """

    mode: RecoveryMode = "ratio additional"
    sampler: str = "AUTO"
    ratio: float = 1.0

    def sampler_after(self, special: str) -> str:
        """The recovery sampler; AUTO takes `dpm_fast` after one-step and UniPC methods, else `dpmpp_2m`."""
        if self.sampler != "AUTO":
            return self.sampler
        return "dpm_fast" if special in {"uni_pc", "uni_pc_bh2", "dpmpp_sde", "dpmpp_sde_gpu"} else "dpmpp_2m"


NO_RECOVERY = Recovery("DISABLE")


class KSamplerCall(NamedTuple):
    """One call: step range [start, end) of a schedule of `steps`, and what becomes of the noise.

    `mask` is 1 where the latent may change, in pixels or cells. `noise` takes the place of the seed's own.
    Without `leftover`, the last level is sigma 0 and the last prediction is returned.
    """

    steps: int
    start: int
    end: int
    seed: int
    add_noise: bool
    leftover: bool
    mask: AnyMask | None = None
    noise: InitialNoise | None = None
    recovery: Recovery = NO_RECOVERY
    batch_index: tuple[int, ...] | None = None


def sigma_range(sigmas: Sequence[float], call: KSamplerCall) -> tuple[tuple[float, ...], tuple[float, float]] | None:
    """The call's part of the whole schedule, and the span of the whole's Brownian path.

    None where it starts past the end and changes nothing.
    """
    whole = list(sigmas)
    part = whole
    if call.end < len(whole) - 1:
        part = whole[: call.end + 1]
        if not call.leftover and part:
            # The originals write this zero into the schedule itself, and so shorten the Brownian path.
            part[-1] = whole[call.end] = 0.0
    if call.start >= len(part) - 1:
        return None
    return tuple(part[call.start :]), span(tuple(Level(1.0, sigma) for sigma in whole))


class PlannedPass(NamedTuple):
    """One pass over `sigmas`, not yet run. A call is none of them, one, or with a recovery sampler two."""

    setting: SamplerConfig
    call: KSamplerCall
    levels: ModelLevels
    sigmas: tuple[float, ...]
    path: tuple[float, float] | None = None
    """The span of the Brownian path (sigmas); None: that of `sigmas`."""
    last_prediction: bool = False
    """Whether its result is the last prediction in the place of the sampler's own x."""
    keep: AnyMask | None = None
    """Where its result is kept; the rest stays as it was before the pass. None: everywhere."""

    @property
    def steps(self) -> int:
        """Steps that can be saved one by one; methods that choose their own are taken as one."""
        steps = len(self.sigmas) - 1
        return min(steps, 1) if self.setting.sampler in CHOOSE_THEIR_STEPS else steps

    @property
    def sigma_schedule(self) -> tuple[Level, ...]:
        """The levels as the sampler walks them."""
        return as_walked(self.setting.sampler, tuple(self.levels.level(sigma) for sigma in self.sigmas))

    def opened(self, shape: Shape) -> Pass:
        """The pass on a boundary latent of a shape [b, c, h, w], with the call's noise and mask.

        A latent without channels is only counted, and gets no noise.
        """
        call = self.call
        own = InitialNoise(call.seed, shape, call.batch_index) if call.add_noise else None
        added = call.noise or own
        noise = torch.zeros(shape) if added is None or shape[1] == 0 else added.draw()
        sigma_schedule = tuple(self.levels.level(sigma) for sigma in self.sigmas)
        return Pass(
            sampler=self.setting.sampler,
            sigma_schedule=self.sigma_schedule,
            guidance=self.setting.guidance,
            seed=call.seed,
            noise=noise,
            mask=None if call.mask is None else noise_mask(call.mask, (shape[0], 1, *shape[2:])),
            levels=self.levels,
            path=self.path or span(sigma_schedule),
        )

    def closed(self, work: Pass, state: PassState, latent: Latent) -> Latent:
        """What the opened pass leaves after its last step: its result laid over the latent that it began with."""
        reached = state.denoised if self.last_prediction else left_by(work, state)
        return reached if self.keep is None else composite(latent, reached, 0, 0, self.keep)


def passes_of(setting: SamplerConfig, call: KSamplerCall, levels: ModelLevels) -> list[PlannedPass]:
    """The passes of an Impact Pack call (KSamplerAdvancedWrapper): one, and one more for recovery.

    Raises BadInput for unknown samplers and schedulers, impossible seeds, and a recovery without mask.
    """
    _check(setting, call, "sampler")
    recovery = call.recovery
    special = setting.sampler in SPECIAL and recovery.mode != "DISABLE"
    ratio = 1.0 - recovery.ratio if special and recovery.mode == "ratio between" else 1.0
    first = _separated(setting, call, levels, ratio * setting.sigma_factor) if ratio > 0 else []
    if not special or recovery.ratio <= 0:
        return first
    if call.mask is None:
        raise BadInput("additional_mode", recovery.mode, "DISABLE where there is no mask")
    first = [planned._replace(keep=_flat(call.mask)) for planned in first]
    again = setting._replace(sampler=recovery.sampler_after(setting.sampler))
    _check(again, call, "additional_sampler")
    # The recovery pass adds the seed's own noise anew, whatever noise the first one was given.
    return first + _separated(again, call._replace(noise=None), levels, recovery.ratio * setting.sigma_factor)


def _check(setting: SamplerConfig, call: KSamplerCall, field: str) -> None:
    original_solver(setting.sampler, field)
    # Brownian paths have no negative seeds.
    check_seed(call.seed, lowest=0 if setting.sampler in BROWNIAN else LOWEST_SEED)


def _separated(setting: SamplerConfig, call: KSamplerCall, levels: ModelLevels, ratio: float) -> list[PlannedPass]:
    """At most one pass of the Impact Pack: sigmas times `ratio`; without leftover noise, the last prediction."""
    found = sigma_range(original_sigmas(levels, setting.sampler, setting.scheduler, call.steps), call)
    if found is None or found[0] == (0.0,):
        return []
    part, whole_path = found
    # In float32, as the originals have them: a Brownian path moves by the root of a difference.
    sigmas = tuple((torch.tensor(part, dtype=torch.float32) * ratio).tolist())
    path = whole_path if setting.sampler in _WHOLE_PATH else None
    return [PlannedPass(setting, call, levels, sigmas, path, last_prediction=not call.leftover)]


def ksampler_passes(
    setting: SamplerConfig, call: KSamplerCall, levels: ModelLevels, denoise: float = 1.0
) -> list[PlannedPass]:
    """The pass of ComfyUI's KSampler (Advanced), if it has one: its result is the sampler's x.

    With `denoise` < 1 the schedule is the end of a longer one, and the range counts from there; at 0
    nothing is sampled. Raises BadInput as `passes_of` does.
    """
    _check(setting, call, "sampler")
    if denoise <= 0:
        return []
    total = call.steps if is_whole(denoise) else lengthened(call.steps, denoise)
    sigmas = original_sigmas(levels, setting.sampler, setting.scheduler, total)
    if not is_whole(denoise):
        sigmas = sigmas[-(call.steps + 1) :]
    part = sigma_range(sigmas, call)
    return [] if part is None else [PlannedPass(setting, call, levels, part[0])]


def full_run(
    seed: int, steps: int, denoise: float, mask: AnyMask | None, batch_index: tuple[int, ...] | None = None
) -> KSamplerCall:
    """The call that a KSAMPLER of the Impact Pack makes: a full run, the end of a longer one where denoise < 1.

    Raises BadInput for denoise 0.
    """
    total = lengthened(steps, denoise)
    return KSamplerCall(
        total, total - steps, total, seed, add_noise=True, leftover=False, mask=mask, batch_index=batch_index
    )


def lengthened(steps: int, denoise: float) -> int:
    """Steps of the schedule whose last `steps` are taken; rounded down after float division, as recorded."""
    if denoise <= 0:
        raise BadInput("denoise", denoise, "more than 0, at most 1")
    return int(steps / denoise)


def _flat(mask: AnyMask) -> AnyMask:
    """A mask [1, 1, H, W] without its two leading axes."""
    return mask.squeeze(0).squeeze(0) if mask.ndim == 4 else mask
