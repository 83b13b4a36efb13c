"""Noise levels and sigma schedules, against recorded schedules of ComfyUI and against their definitions."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sampling_core.errors import BadInput
from sampling_core.job import SchedulerName
from sampling_core.levels import SCHEDULES, ModelLevels, beta_levels, flow_levels, ladder
from sampling_core.noise import add_noise, initial_noise
from tests.goldens import CASES, tensors

MODELS: dict[str, ModelLevels] = {
    "eps": beta_levels("epsilon"),
    "v": beta_levels("v_prediction"),
    "flow": flow_levels(),
}
RECORDED = [case for case in CASES if case["group"] == "sigmas"]


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["id"])
def test_agrees_with_recorded_schedules(case: dict) -> None:
    params = case["params"]
    denoise = params.get("denoise") or 1.0
    found = ladder(MODELS[params["model"]], params["scheduler"], params["steps"], denoise)
    recorded = tensors("sigmas")[case["expect"]["tensor"]]
    torch.testing.assert_close(torch.tensor([level.sigma for level in found]), recorded, rtol=2e-5, atol=1e-6)


@given(
    scheduler=st.sampled_from(sorted(SCHEDULES)),
    model=st.sampled_from(sorted(MODELS)),
    steps=st.integers(1, 50),
    denoise=st.floats(0.05, 1),
)
def test_ladders_fall_to_zero(scheduler: str, model: str, steps: int, denoise: float) -> None:
    found = ladder(MODELS[model], scheduler, steps, denoise)
    sigmas = [level.sigma for level in found]
    assert len(sigmas) == steps + 1
    assert sigmas[-1] == 0
    assert all(high > low for high, low in pairwise(sigmas))
    assert all(level.alpha == (1 - level.sigma if model == "flow" else 1) for level in found)


@given(timestep=st.integers(0, 999), model=st.sampled_from(["eps", "v"]))
def test_timestep_of_a_trained_level(timestep: int, model: str) -> None:
    levels = MODELS[model]
    assert levels.timestep_of(levels.sigma_at(timestep)) == timestep


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosine", 10, 1.0), "scheduler: 'cosine'"),
        (("normal", 0, 1.0), "steps: 0"),
        (("normal", 10, 0.0), "denoise: 0.0"),
    ],
)
def test_refuses(arguments: tuple[str, int, float], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ladder(MODELS["eps"], *arguments)


def test_registry_is_what_the_job_allows() -> None:
    assert set(get_args(SchedulerName)) == set(SCHEDULES)


def test_whole_number_of_steps_survives_division() -> None:
    """7 / 0.07 is 99.99999999999999 in floating point; the schedule has 100 steps all the same."""
    whole = ladder(MODELS["eps"], "normal", 100)
    assert ladder(MODELS["eps"], "normal", 7, 0.07) == whole[-8:]


def test_noise_is_a_function_of_its_seed() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (initial_noise(2**64 - 1, (1, 4, 8, 8)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before), "the process-wide random state was touched"
    assert not torch.equal(one, initial_noise(0, (1, 4, 8, 8)))


def test_noise_is_what_comfyui_draws() -> None:
    torch.manual_seed(42)
    assert torch.equal(initial_noise(42, (1, 4, 8, 8)), torch.randn(1, 4, 8, 8))


@pytest.mark.parametrize("model", sorted(MODELS))
def test_start_has_the_variance_of_its_level(model: str) -> None:
    levels = MODELS[model]
    noise = initial_noise(1, (1, 4, 64, 64))
    for step, allowed in ((0, 1.0), (5, 0.0)):
        level = ladder(levels, "normal", 10)[step]
        wanted = (level.sigma**2 + (allowed if model != "flow" else 0)) ** 0.5
        started = add_noise(torch.zeros_like(noise), noise, level, levels)
        assert float(started.std()) == pytest.approx(wanted * float(noise.std()), rel=1e-5)
