"""One participant over the whole canvas gives what ComfyUI gives, from the same seed and network."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from sampling_core.evaluate import evaluate
from sampling_core.guidance import Guidance
from sampling_core.levels import ModelLevels, beta_levels, flow_levels
from sampling_core.models.unet import UNetDenoiser
from sampling_core.noise import add_noise, initial_noise
from sampling_core.sampler import Participant, Plan
from sampling_core.schedules import ladder
from sampling_core.solvers import Query, solver_named
from tests.goldens import CASES, FOLDER, SCALING, conditionings, latents, tensors
from tests.problems import finish

LEVELS: dict[str, ModelLevels] = {
    "eps": beta_levels("epsilon"),
    "v": beta_levels("v_prediction"),
    "flow": flow_levels(),
}


@cache
def network(model: str) -> UNetDenoiser:
    return UNetDenoiser(UNet2DConditionModel.from_pretrained(FOLDER / "models" / model).eval(), LEVELS[model])


def _tolerance(case: dict[str, Any]) -> float:
    """As the recordings suggest: rounding, and how much this case amplifies it."""
    return max(2e-4 * max(case["expect"]["std"], 1), 20 * case["sensitivity_1e-6"])


def _group(name: str) -> list[dict[str, Any]]:
    return [case for case in CASES if case["group"] == name]


@pytest.mark.parametrize("case", _group("denoiser"), ids=lambda case: case["id"])
def test_denoiser(case: dict[str, Any]) -> None:
    params = case["params"]
    levels = LEVELS[params["model"]]
    guidance = Guidance(params["cfg"], params["positive"], params["negative"])
    query = Query(latents()[case["latent"]], levels.level(params["sigma"]))
    answers, count = evaluate([(query, guidance)], network(params["model"]), conditionings())
    error = (answers[0] - tensors("denoiser")[case["id"]]).abs().max()
    assert float(error) <= _tolerance(case)
    assert count.evaluations <= case["stats"]["unet_elements"]


@pytest.mark.parametrize("case", _group("ksampler_advanced"), ids=lambda case: case["id"])
def test_full_run(case: dict[str, Any]) -> None:
    sampler, params = case["sampler"], case["params"]
    levels = LEVELS[sampler["model"]]
    rungs = ladder(levels, sampler["scheduler"], params["steps"], params["denoise"])
    guidance = Guidance(sampler["cfg"], sampler["positive"], sampler["negative"])
    clean: Tensor = latents()[case["latent"]] * SCALING
    everywhere = torch.ones(clean.shape[-2:])
    base = Participant("base", guidance, solver_named(sampler["sampler_name"]), everywhere, everywhere)
    noise = initial_noise(params["noise_seed"], tuple(clean.shape))
    x = add_noise(clean, noise, rungs[0], levels)
    reached = finish(Plan(rungs, 0, (base,)), x, network(sampler["model"]), conditionings())
    error = (reached.x / SCALING - tensors("ksampler_advanced")[case["id"]]).abs().max()
    assert float(error) <= _tolerance(case)
