"""Recorded sampler calls on our code: guided predictions, KSamplerAdvanced, and the Impact Pack's wrappers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import KSamplerCall, SamplerConfig, full_run
from prefect_regional_diffusion.sampling_core.comfyui.masks import repeated
from prefect_regional_diffusion.sampling_core.comfyui.node_passes import NodePass, passes_of
from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import LatentBox, SequentialSamplingRun
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext, evaluate
from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance, PromptKey, Request
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.sampling_core.names import RecoveryMode
from prefect_regional_diffusion.sampling_core.noise.initial import InitialNoise, shape_of
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels, beta_levels, flow_levels
from prefect_regional_diffusion.sampling_core.solvers import DenoiseRequest
from tests.drawn_together import MOST_ROWS
from tests.problems import conditionings
from tests.recordings import SCALING, Case, Recordings

CHANNELS = 4
LEVELS: dict[str, ModelLevels] = {
    "eps": beta_levels("epsilon"),
    "v": beta_levels("v_prediction"),
    "flow": flow_levels(),
}


@dataclass(frozen=True)
class RecordedNoise(InitialNoise):
    """Noise [b, c, h, w] that a case brings with it."""

    latent: Tensor = field(default_factory=lambda: torch.zeros(0))

    def draw(self) -> Tensor:
        return self.latent


@cache
def networks(folder: Path) -> dict[str, UNetDenoiser]:
    # Most groups of recordings need no network, and are judged in processes of their own (`tests/test_processors.py`).
    from diffusers import UNet2DConditionModel

    return {
        name: UNetDenoiser(UNet2DConditionModel.from_pretrained(folder / "models" / name).eval(), levels)
        for name, levels in LEVELS.items()
    }


def context(recordings: Recordings) -> EvaluationContext:
    encoded_prompts: dict[PromptKey, Conditioning] = {}
    for model in LEVELS:
        encoded_prompts |= conditionings(recordings.conditionings, model)
    return EvaluationContext(networks(recordings.folder), encoded_prompts, max_forward_rows=MOST_ROWS)


def node_run(passes: list[NodePass], latent: Tensor, cells: tuple[LatentBox, ...] = ()) -> SequentialSamplingRun:
    """A node's passes on a latent."""
    if latent.shape[1] != CHANNELS and not bool(latent.any()):
        # Empty latents get as many channels as the networks take.
        latent = repeated(latent.transpose(0, 1), CHANNELS).transpose(0, 1) if passes else latent
    return SequentialSamplingRun(tuple(passes), latent, cells=cells)


def _alone(call: KSamplerCall, latent: Tensor) -> SequentialSamplingRun:
    """One call on a latent, as a node of that call alone."""
    return node_run(passes_of([call], LEVELS), latent)


def sampler_config(config: dict[str, Any]) -> SamplerConfig:
    guidance = ClassifierFreeGuidance(config["cfg"], config["positive"], config["negative"], model=config["model"])
    return SamplerConfig(config["sampler_name"], config["scheduler"], guidance, config.get("sigma_factor", 1.0))


def latent_of(case: Case, recordings: Recordings) -> tuple[Tensor, Tensor | None, tuple[int, ...] | None]:
    """The case's latent in model space, its noise mask, and its batch index."""
    latent = case["latent"]
    if isinstance(latent, str):
        latent = {"samples": latent}
    mask = recordings.mask(latent["noise_mask"]) if "noise_mask" in latent else None
    index = tuple(map(int, latent["batch_index"])) if "batch_index" in latent else None
    return recordings.latent(latent["samples"]) * SCALING, mask, index


def recovery_mode(name: str) -> RecoveryMode:
    """A mode that nobody knows acts like `ratio additional`."""
    return name if name == "DISABLE" or name == "ratio between" else "ratio additional"


def denoiser(case: Case, recordings: Recordings) -> Tensor:
    params = case["params"]
    guidance = ClassifierFreeGuidance(params["cfg"], params["positive"], params["negative"], model=params["model"])
    query = DenoiseRequest(recordings.latent(case["latent"]), LEVELS[params["model"]].level(params["sigma"]))
    answers, count = evaluate([Request(query, guidance)], context(recordings))
    assert not dearer_than_recorded(case, count)
    return answers[0].denoised


def ksampler_advanced(case: Case, recordings: Recordings) -> SequentialSamplingRun:
    latent, mask, index = latent_of(case, recordings)
    call = ksampler_call(sampler_config(case["sampler"]), case["params"], mask, index)
    return _alone(call, latent)


def ksampler_call(
    config: SamplerConfig, params: dict[str, Any], mask: Tensor | None, index: tuple[int, ...] | None
) -> KSamplerCall:
    return KSamplerCall(
        config,
        params["steps"],
        params["start_at_step"],
        params["end_at_step"],
        params["noise_seed"],
        params["add_noise"] == "enable",
        params["return_with_leftover_noise"] == "enable",
        mask,
        batch_index=index,
        ksampler_denoise=params["denoise"],
    )


def advanced(case: Case, recordings: Recordings) -> SequentialSamplingRun:
    params = case["params"]
    latent, mask, index = latent_of(case, recordings)
    call = KSamplerCall(
        sampler_config(case["sampler"]),
        params["steps"],
        params["start_at_step"],
        params["end_at_step"],
        params["seed"],
        params["add_noise"],
        params["return_with_leftover_noise"],
        mask,
        RecordedNoise(0, shape_of(latent), latent=recordings.latent(case["noise"])) if "noise" in case else None,
        index,
        recovery_mode(params["recovery_mode"]),
        params.get("recovery_sampler", "AUTO"),
        params.get("recovery_sigma_ratio", 1.0),
    )
    return _alone(call, latent)


def ksampler_wrapper(case: Case, recordings: Recordings) -> SequentialSamplingRun:
    latent, mask, _ = latent_of(case, recordings)
    return _alone(full_run_of(case["sampler"], mask), latent)


def full_run_of(config: dict[str, Any], mask: Tensor | None = None) -> KSamplerCall:
    return full_run(sampler_config(config), config["seed"], config["steps"], config["denoise"], mask)


def dearer_than_recorded(case: Case, count: Count) -> str:
    """What was asked of the network more often than the original asked it; empty if nothing was."""
    stats = case.get("stats", {"unet_calls": 0, "unet_elements": 0})
    if count.forwards > stats["unet_calls"]:
        return f"{count.forwards} forwards, recorded {stats['unet_calls']}"
    if count.evaluations > stats["unet_elements"]:
        return f"{count.evaluations} rows, recorded {stats['unet_elements']}"
    return ""
