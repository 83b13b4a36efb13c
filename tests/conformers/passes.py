"""Recorded sampler calls on our code: guided predictions, KSamplerAdvanced, and the Impact Pack's wrappers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from sampling_core.evaluate import Count, evaluate
from sampling_core.guidance import Guidance
from sampling_core.levels import ModelLevels, beta_levels, flow_levels
from sampling_core.models.unet import UNetDenoiser
from sampling_core.nodes.calls import (
    NO_RECOVERY,
    Call,
    Networks,
    Recovery,
    Setting,
    ksampler,
    sample_advanced,
    wrapped_ksampler,
)
from sampling_core.solvers import Query
from tests.recordings import SCALING, Case, Recordings

LEVELS: dict[str, ModelLevels] = {
    "eps": beta_levels("epsilon"),
    "v": beta_levels("v_prediction"),
    "flow": flow_levels(),
}


@cache
def networks(folder: Path) -> dict[str, UNetDenoiser]:
    return {
        name: UNetDenoiser(UNet2DConditionModel.from_pretrained(folder / "models" / name).eval(), levels)
        for name, levels in LEVELS.items()
    }


def using(recordings: Recordings) -> Networks:
    return Networks(networks(recordings.folder), LEVELS, recordings.conditionings)


def setting(config: dict[str, Any]) -> Setting:
    guidance = Guidance(config["cfg"], config["positive"], config["negative"])
    factor = config.get("sigma_factor", 1.0)
    return Setting(config["model"], config["sampler_name"], config["scheduler"], guidance, factor)


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
    guidance = Guidance(params["cfg"], params["positive"], params["negative"])
    query = Query(recordings.latent(case["latent"]), LEVELS[params["model"]].level(params["sigma"]))
    network = networks(recordings.folder)[params["model"]]
    answers, count = evaluate([(query, guidance)], network, recordings.conditionings)
    check_cost(case, count)
    return answers[0].denoised


def ksampler_advanced(case: Case, recordings: Recordings) -> Tensor:
    latent, mask, index = latent_of(case, recordings)
    call = ksampler_call(case["params"], mask, index)
    found, count = ksampler(setting(case["sampler"]), call, latent, using(recordings), case["params"]["denoise"])
    check_cost(case, count)
    return found / SCALING


def ksampler_call(params: dict[str, Any], mask: Tensor | None, index: tuple[int, ...] | None) -> Call:
    adds, leftover = (params[name] == "enable" for name in ("add_noise", "return_with_leftover_noise"))
    start, end = params["start_at_step"], params["end_at_step"]
    return Call(params["steps"], start, end, params["noise_seed"], adds, leftover, mask, batch_index=index)


def advanced(case: Case, recordings: Recordings) -> Tensor:
    params = case["params"]
    latent, mask, index = latent_of(case, recordings)
    call = Call(
        params["steps"],
        params["start_at_step"],
        params["end_at_step"],
        params["seed"],
        params["add_noise"],
        params["return_with_leftover_noise"],
        mask,
        recordings.latent(case["noise"]) if "noise" in case else None,
        NO_RECOVERY if params["recovery_mode"] == "DISABLE" else recovery(params, "recovery"),
        index,
    )
    found, count = sample_advanced(setting(case["sampler"]), call, latent, using(recordings))
    check_cost(case, count)
    return found / SCALING


def ksampler_wrapper(case: Case, recordings: Recordings) -> Tensor:
    config = case["sampler"]
    latent, mask, _ = latent_of(case, recordings)
    found, count = wrapped_ksampler(
        setting(config), config["seed"], config["steps"], config["denoise"], latent, mask, using(recordings)
    )
    check_cost(case, count)
    return found / SCALING


def check_cost(case: Case, count: Count) -> None:
    """Never more than the original asked of the network."""
    stats = case.get("stats", {"unet_calls": 0, "unet_elements": 0})
    calls, rows = stats["unet_calls"], stats["unet_elements"]
    assert count.forwards <= calls, f"{count.forwards} forwards, recorded {calls}"
    assert count.evaluations <= rows, f"{count.evaluations} rows, recorded {rows}"
