"""Turns: what a node does one after the other on one latent, and the passes that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import (
    KSamplerCall,
    PlannedPass,
    SamplerConfig,
    ksampler_passes,
    passes_of,
)
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask


class NodeStep(NamedTuple):
    """One sampler call of a node."""

    who: str
    """Name of the setting: `base`, or a region's."""
    call: KSamplerCall
    restore: bool = False
    """Only what the call's mask covers is taken from its result."""
    fork: bool = False
    """It begins with the node's own latent, and its result is a picture of its own."""
    ksampler_denoise: float | None = None
    """The call is one of ComfyUI's KSampler with this denoise. None: of the Impact Pack's."""


class NodePass(NamedTuple):
    """A pass, and how it hangs together with those before and after it."""

    planned: PlannedPass
    opens: bool
    """It is the first one of its turn."""
    restore: AnyMask | None
    """Where its result is laid over the latent that its turn began with; None: it is not."""
    fork: bool


def stages(
    turns: Sequence[NodeStep], settings: Mapping[str, SamplerConfig], levels: Mapping[str, ModelLevels]
) -> list[NodePass]:
    """All passes of a node in their order; `levels` by model name. Turns that change nothing have none.

    Raises BadInput for samplers, schedulers, seeds and recoveries that cannot be.
    """
    found: list[NodePass] = []
    for turn in turns:
        setting = settings[turn.who]
        own = levels[setting.guidance.model]
        if turn.ksampler_denoise is None:
            passes = passes_of(setting, turn.call, own)
        else:
            passes = ksampler_passes(setting, turn.call, own, turn.ksampler_denoise)
        for number, planned in enumerate(passes):
            restore = turn.call.mask if turn.restore and number == len(passes) - 1 else None
            found.append(NodePass(planned, number == 0, restore, turn.fork))
    return found
