"""Group `sigmas`: schedules, and the model's own conversions between timestep, sigma and share of the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.schedules import (
    SCHEDULES,
    TABLES,
    align_your_steps,
    gits,
    original_sigmas,
)
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels, beta_levels, flow_levels
from tests.recordings import Case, Recordings

LEVELS: dict[str, ModelLevels] = {
    "eps": beta_levels("epsilon"),
    "v": beta_levels("v_prediction"),
    "flow": flow_levels(),
}


def sigmas(case: Case, recordings: Recordings) -> Tensor:
    """What the call named by `via` returned: sigmas, or timesteps for `.timestep`."""
    params = case["params"]
    return torch.tensor(_answer(params["via"], params, LEVELS[params["model"]]), dtype=torch.float32)


def _answer(via: str, params: dict[str, Any], levels: ModelLevels) -> list[float]:
    match via:
        case "comfy.KSampler":
            # Its own list of names lacks the Impact Pack's; what it does not know it takes for `simple`.
            is_known = params["scheduler"] in SCHEDULES and params["scheduler"] not in TABLES
            return _schedule(params | {"scheduler": params["scheduler"] if is_known else "simple"}, levels)
        case "impact.calculate_sigmas":
            return _schedule(params, levels)
        case "GITSScheduler.execute":
            return _end_of(gits(params["steps"], params["coeff"]), params)
        case "AlignYourStepsScheduler.execute":
            return _end_of(align_your_steps(params["model_type"], params["steps"]), params)
        case "model_sampling.sigmas":
            return list(levels.sigmas)
        case "model_sampling.timestep":
            return [levels.timestep_of(sigma) for sigma in params["sigmas"]]
        case "model_sampling.sigma":
            return [levels.sigma_at(timestep) for timestep in params["timesteps"]]
        case "model_sampling.percent_to_sigma":
            return [levels.percent_to_sigma(percent) for percent in params["percents"]]
        case _:
            raise NotImplementedError(via)


def _schedule(params: dict[str, Any], levels: ModelLevels) -> list[float]:
    denoise = params.get("denoise", 1.0)
    return list(original_sigmas(levels, params["sampler_name"], params["scheduler"], params["steps"], denoise))


def _end_of(schedule: list[float], params: dict[str, Any]) -> list[float]:
    """These two nodes shorten a schedule by `denoise`, where a KSampler would make it longer first."""
    return schedule[-(round(params["steps"] * params.get("denoise", 1.0)) + 1) :]
