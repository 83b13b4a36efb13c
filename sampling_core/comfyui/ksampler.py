"""Calls: the sampler calls of a node, with all their inputs.

Mirrors the inputs of KSamplerAdvancedWrapper and KSamplerWrapper (Impact Pack 7.10.6), and of ComfyUI's KSampler.
"""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.engine.guidance import Guidance
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.names import RecoveryMode
from prefect_regional_diffusion.sampling_core.noise.initial import InitialNoise
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask


class SamplerConfig(NamedTuple):
    """A KSAMPLER_ADVANCED: model and guidance, sampler and scheduler, without steps or seed."""

    sampler: str
    scheduler: str
    guidance: Guidance
    sigma_factor: float = 1.0
    """All sigmas of a call are multiplied by it."""


class KSamplerCall(NamedTuple):
    """One sampler call of a node: step range [start, end) of a schedule of `steps`, and what becomes of the noise.

    The recovery is the second pass of special samplers: `ratio additional` repeats the step's sigmas times the
    ratio; `ratio between` gives the first pass `1 - ratio` of them.
    """

    config: SamplerConfig
    steps: int
    start: int
    end: int
    seed: int
    add_noise: bool
    leftover: bool
    """Without it, the last level is sigma 0 and the last prediction is returned."""
    mask: AnyMask | None = None
    """1 where the latent may change, in pixels or cells."""
    noise: InitialNoise | None = None
    """Added in the place of the seed's own, whatever `add_noise` says."""
    batch_index: tuple[int, ...] | None = None
    recovery_mode: RecoveryMode = "DISABLE"
    recovery_sampler: str = "AUTO"
    recovery_sigma_ratio: float = 1.0
    restore: bool = False
    """Only what the mask covers is taken from its result."""
    fork: bool = False
    """It begins with the node's own latent, and its result is a picture of its own."""
    ksampler_denoise: float | None = None
    """The call is one of ComfyUI's KSampler (Advanced) with this denoise. None: of the Impact Pack's."""


def full_run(
    config: SamplerConfig,
    seed: int,
    steps: int,
    denoise: float,
    mask: AnyMask | None = None,
    batch_index: tuple[int, ...] | None = None,
) -> KSamplerCall:
    """The call that a KSAMPLER of the Impact Pack makes: a full run, the end of a longer one where denoise < 1.

    Raises BadInput for denoise 0.
    """
    total = lengthened(steps, denoise)
    return KSamplerCall(
        config, total, total - steps, total, seed, add_noise=True, leftover=False, mask=mask, batch_index=batch_index
    )


def lengthened(steps: int, denoise: float) -> int:
    """Steps of the schedule whose last `steps` are taken; rounded down after float division, as recorded."""
    if denoise <= 0:
        raise BadInput("denoise", denoise, "more than 0, at most 1")
    return int(steps / denoise)
