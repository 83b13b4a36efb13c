"""What a job is written in: names of samplers, schedulers, modes. Anything may import this; it imports nothing of ours.

They are here and not beside what they name, so that a job can be read, checked and resolved without torch. Tests
compare them with what there is (`tests/test_solvers.py`, `tests/test_schedules.py`).
"""

from __future__ import annotations

from typing import Literal, get_args

SamplerName = Literal[
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
]
CHOOSE_THEIR_STEPS: frozenset[SamplerName] = frozenset({"dpm_fast", "dpm_adaptive"})
"""Samplers that do not step where they are told."""
CFG_PP: frozenset[SamplerName] = frozenset(name for name in get_args(SamplerName) if name.endswith("_cfg_pp"))
"""Samplers that want the unconditional prediction in every step, also where guidance is off."""

SchedulerName = Literal[
    "normal",
    "karras",
    "exponential",
    "sgm_uniform",
    "simple",
    "ddim_uniform",
    "beta",
    "linear_quadratic",
    "kl_optimal",
    "AYS SD1",
    "AYS SDXL",
    "AYS SVD",
    "GITS",
]

CompositionName = Literal["joint", "attention", "sequential"]
ArrangementName = Literal["rows", "attention", "auto"]
"""Who has a row in joint composition: each region one of its own; or prompts that differ in nothing else one together;
or whichever of the two is less work."""
PromptSyntax = Literal["plain", "comfyui", "a1111"]
"""The dialect that a prompt is written in (`sampling_core.text.prompt_syntax`)."""
OverlapRule = Literal["weight", "order"]
StepNoiseName = Literal["per_step", "comfyui"]
VariationMethod = Literal["linear", "slerp"]
Fit = Literal["crop", "contain", "stretch"]
"""How an image whose shape is not the canvas' is laid on it (`sampling_core.masks.image_fitting`)."""
ControlPlace = Literal["canvas", "region"]
"""What a control's picture lies on: the canvas, or the smallest rectangle around the mask of its region."""
WindowRule = Literal["canvas", "auto"]
"""What the network sees when it evaluates a region: the whole canvas, or a part of it where that saves enough."""
ForkMode = Literal["Sample then Fork", "Fork then Sample"]

NodeName = Literal[
    "RegionalSampler",
    "RegionalSamplerAdvanced",
    "TwoSamplersForMask",
    "TwoAdvancedSamplersForMask",
    "MaskGridNKSamplersAdvanced",
]
RecoveryMode = Literal["DISABLE", "ratio additional", "ratio between"]
RecoverySampler = Literal["AUTO", "euler", "heun", "heunpp2", "dpm_2", "dpm_fast", "dpmpp_2m", "ddpm"]
SecondSeedMode = Literal["ignore", "fixed", "seed+seed_2nd", "seed-seed_2nd", "increment", "decrement", "randomize"]

Size = tuple[int, int]
"""Height and width in pixels."""


def is_whole(denoise: float) -> bool:
    """Whether a run takes its whole schedule, as ComfyUI rounds: the same picture for all these values."""
    return denoise > 0.9999


EmptyNegative = Literal["encoded", "none"]
"""What an empty negative prompt is: a prompt like any other, or none, for which a family has a stand-in."""
