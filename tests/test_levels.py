"""Noise levels of models, and the noise that a run starts from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefect_regional_diffusion.sampling_core.noise.initial import add_noise, initial_noise
from prefect_regional_diffusion.sampling_core.schedules import sigma_schedule
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels, beta_levels, flow_levels

MODELS: dict[str, ModelLevels] = {
    "eps": beta_levels("epsilon"),
    "v": beta_levels("v_prediction"),
    "flow": flow_levels(),
}


@given(timestep=st.integers(0, 999), model=st.sampled_from(["eps", "v"]))
def test_timestep_of_a_trained_level(timestep: int, model: str) -> None:
    levels = MODELS[model]
    assert levels.timestep_of(levels.sigma_at(timestep)) == timestep


@pytest.mark.parametrize("model", sorted(MODELS))
def test_sigma_at_is_the_table_where_there_is_one(model: str) -> None:
    """Training timesteps count from 0, and a flow model's from 1 to 1000."""
    levels = MODELS[model]
    first = 1 if model == "flow" else 0
    found = [levels.sigma_at(i + first) for i in range(1000)]
    assert found == pytest.approx(levels.sigmas, rel=1e-6)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_percent_to_sigma_falls_to_zero(model: str) -> None:
    levels = MODELS[model]
    found = [levels.percent_to_sigma(percent) for percent in (0, 0.001, 0.25, 0.5, 0.75, 0.999, 1)]
    assert found == sorted(found, reverse=True)
    assert found[0] >= levels.largest
    assert found[-1] == 0


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
        level = sigma_schedule(levels, "normal", 10)[step]
        wanted = (level.sigma**2 + (allowed if model != "flow" else 0)) ** 0.5
        started = add_noise(torch.zeros_like(noise), noise, level, levels)
        assert float(started.std()) == pytest.approx(wanted * float(noise.std()), rel=1e-5)
