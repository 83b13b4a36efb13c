"""Recorded sampler calls on our code: guided predictions, KSamplerAdvanced, and the Impact Pack's wrappers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import (
    NO_RECOVERY,
    KSamplerCall,
    Recovery,
    SamplerConfig,
    full_run,
)
from prefect_regional_diffusion.sampling_core.comfyui.masks import repeated
from prefect_regional_diffusion.sampling_core.comfyui.node_program import NodePass, NodeStep, stages
from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import MaskGridCells, Sequential
from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import Count, Networks, evaluate
from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance, PromptKey
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.sampling_core.noise.initial import InitialNoise, shape_of
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels, beta_levels, flow_levels
from prefect_regional_diffusion.sampling_core.solvers import Query
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
    return {
        name: UNetDenoiser(UNet2DConditionModel.from_pretrained(folder / "models" / name).eval(), levels)
        for name, levels in LEVELS.items()
    }


def using(recordings: Recordings) -> Networks:
    told: dict[PromptKey, Conditioning] = {}
    for model in LEVELS:
        told |= conditionings(recordings.conditionings, model)
    return Networks(networks(recordings.folder), told)


def walked(
    recordings: Recordings, stages: list[NodePass], latent: Tensor, cells: MaskGridCells | None = None
) -> tuple[Tensor, Count]:
    """What a node makes of a latent, and what it cost."""
    if latent.shape[1] != CHANNELS and not bool(latent.any()):
        # Empty latents get as many channels as the networks take.
        latent = repeated(latent.transpose(0, 1), CHANNELS).transpose(0, 1) if stages else latent
    run = Sequential(tuple(stages), latent, cells=cells)
    walk, total = run.begin(), Count()
    for reached, count in iterate(run, walk, using(recordings)):
        walk, total = reached, total.plus(count)
    return run.pictures(walk), total


def alone(recordings: Recordings, config: dict[str, Any], turn: NodeStep, latent: Tensor) -> tuple[Tensor, Count]:
    """One call, as a node of one turn."""
    return walked(recordings, stages([turn], {turn.who: setting(config)}, LEVELS), latent)


def setting(config: dict[str, Any]) -> SamplerConfig:
    guidance = ClassifierFreeGuidance(config["cfg"], config["positive"], config["negative"], model=config["model"])
    return SamplerConfig(config["sampler_name"], config["scheduler"], guidance, config.get("sigma_factor", 1.0))


def latent_of(case: Case, recordings: Recordings) -> tuple[Tensor, Tensor | None, tuple[int, ...] | None]:
    """The case's latent in model space, its noise mask, and its batch index."""
    latent = case["latent"]
    if isinstance(latent, str):
        latent = {"samples": latent}
    mask = recordings.mask(latent["noise_mask"]) if "noise_mask" in latent else None
    index = tuple(latent["batch_index"]) if "batch_index" in latent else None
    return recordings.latent(latent["samples"]) * SCALING, mask, index


def recovery(params: dict[str, Any], prefix: str) -> Recovery:
    """The recovery of a case; a mode that nobody knows acts like `ratio additional`."""
    mode = params[f"{prefix}_mode"]
    known = mode if mode in {"DISABLE", "ratio between"} else "ratio additional"
    return Recovery(known, params[f"{prefix}_sampler"], params[f"{prefix}_sigma_ratio"])


def denoiser(case: Case, recordings: Recordings) -> Tensor:
    params = case["params"]
    guidance = ClassifierFreeGuidance(params["cfg"], params["positive"], params["negative"], model=params["model"])
    query = Query(recordings.latent(case["latent"]), LEVELS[params["model"]].level(params["sigma"]))
    answers, count = evaluate([(query, guidance)], using(recordings))
    check_cost(case, count)
    return answers[0].denoised


def ksampler_advanced(case: Case, recordings: Recordings) -> Tensor:
    latent, mask, index = latent_of(case, recordings)
    call = ksampler_call(case["params"], mask, index)
    turn = NodeStep("", call, ksampler_denoise=case["params"]["denoise"])
    found, count = alone(recordings, case["sampler"], turn, latent)
    check_cost(case, count)
    return found / SCALING


def ksampler_call(params: dict[str, Any], mask: Tensor | None, index: tuple[int, ...] | None) -> KSamplerCall:
    adds, leftover = (params[name] == "enable" for name in ("add_noise", "return_with_leftover_noise"))
    start, end = params["start_at_step"], params["end_at_step"]
    return KSamplerCall(params["steps"], start, end, params["noise_seed"], adds, leftover, mask, batch_index=index)


def advanced(case: Case, recordings: Recordings) -> Tensor:
    params = case["params"]
    latent, mask, index = latent_of(case, recordings)
    call = KSamplerCall(
        params["steps"],
        params["start_at_step"],
        params["end_at_step"],
        params["seed"],
        params["add_noise"],
        params["return_with_leftover_noise"],
        mask,
        RecordedNoise(0, shape_of(latent), latent=recordings.latent(case["noise"])) if "noise" in case else None,
        NO_RECOVERY if params["recovery_mode"] == "DISABLE" else recovery(params, "recovery"),
        index,
    )
    found, count = alone(recordings, case["sampler"], NodeStep("", call), latent)
    check_cost(case, count)
    return found / SCALING


def ksampler_wrapper(case: Case, recordings: Recordings) -> Tensor:
    config = case["sampler"]
    latent, mask, _ = latent_of(case, recordings)
    call = full_run(config["seed"], config["steps"], config["denoise"], mask)
    found, count = alone(recordings, config, NodeStep("", call), latent)
    check_cost(case, count)
    return found / SCALING


def check_cost(case: Case, count: Count) -> None:
    """Never more than the original asked of the network."""
    stats = case.get("stats", {"unet_calls": 0, "unet_elements": 0})
    calls, rows = stats["unet_calls"], stats["unet_elements"]
    assert count.forwards <= calls, f"{count.forwards} forwards, recorded {calls}"
    assert count.evaluations <= rows, f"{count.evaluations} rows, recorded {rows}"
