"""One function per group of recordings: the same case on our code.

Each returns what was recorded, or a run that ends with it, in model space.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import SequentialSamplingRun
from tests.conformers.masks import composite, erosion, inv_mask, prepare_mask
from tests.conformers.nodes import node
from tests.conformers.noise import noise
from tests.conformers.passes import advanced, denoiser, ksampler_advanced, ksampler_wrapper
from tests.conformers.schedules import sigmas
from tests.recordings import Case, Recordings

GROUPS: dict[str, Callable[[Case, Recordings], Tensor | SequentialSamplingRun]] = {
    "sigmas": sigmas,
    "erosion": erosion,
    "prepare_mask": prepare_mask,
    "inv_mask": inv_mask,
    "composite": composite,
    "noise": noise,
    "denoiser": denoiser,
    "ksampler_advanced": ksampler_advanced,
    "sample_advanced": advanced,
    "ksampler_wrapper": ksampler_wrapper,
    "recovery": advanced,
    "node": node,
}
