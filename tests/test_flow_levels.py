"""Noise levels of flow models: those of diffusers' scheduler and of ComfyUI's tables, for each canvas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from prefect_regional_diffusion.sampling_core.models.flow_scheduler import FlowScheduler
from prefect_regional_diffusion.sampling_core.schedules import SCHEDULES, TABLES, sigma_schedule
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import time_shifted_levels
from tests.flow_pipelines import simple

DEV: dict[str, Any] = {"shift": 3.0, "use_dynamic_shifting": True}


@pytest.mark.parametrize("shift", [1.0, 1.73, 3.0, 6.0])
def test_a_static_shift_gives_the_table_of_the_scheduler(shift: float) -> None:
    table = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas
    levels = FlowScheduler(shift=shift).levels(64)
    assert levels.sigmas == pytest.approx(torch.as_tensor(table).flip(0).tolist(), rel=1e-6)
    assert levels == FlowScheduler(shift=shift).levels(4096)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (1024, 0.63), (8100, 1.8277604)])
def test_a_shift_by_the_canvas_is_that_of_the_scheduler(tokens: int, mu: float) -> None:
    """Of more tokens than 4096, the line goes on."""
    levels = FlowScheduler(**DEV).levels(tokens)
    assert levels.time_shift == pytest.approx(mu)
    scheduler = FlowMatchEulerDiscreteScheduler(**DEV)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=levels.time_shift)
    found = [level.sigma for level in sigma_schedule(levels, "simple", 4)]
    assert found == pytest.approx(torch.as_tensor(scheduler.sigmas).tolist(), rel=1e-6)


def test_simple_takes_every_nth_of_ten_thousand_levels() -> None:
    """Seven steps do not divide the table, so that a tenth of the levels would give other sigmas."""
    found = [level.sigma for level in sigma_schedule(FlowScheduler(**DEV).levels(4096), "simple", 7)]
    assert found == pytest.approx(simple(7, math.exp(1.15), 10_000), rel=1e-6)
    assert found != pytest.approx(simple(7, math.exp(1.15), 1000), rel=1e-5)


def test_levels_are_computed_as_comfyui_does() -> None:
    """To the last bit: `flux_time_shift` of float32 shares."""
    share = torch.arange(1, 10_001, 1) / 10_000
    expected = math.exp(1.15) / (math.exp(1.15) + (1 / share - 1) ** 1.0)
    assert time_shifted_levels(1.15).sigmas == tuple(expected.tolist())


def test_a_level_between_those_of_the_table_is_on_their_curve() -> None:
    levels = time_shifted_levels(0.9)
    assert levels.sigma_at(1000) == 1
    assert levels.sigma_at(400) == levels.sigmas[3999]
    assert levels.percent_to_sigma(0.6) == pytest.approx(levels.sigmas[3999])
    assert levels.percent_to_sigma(0) == 1
    assert levels.percent_to_sigma(1) == 0


@pytest.mark.parametrize("scheduler", sorted(SCHEDULES.keys() - TABLES.keys()))
def test_every_schedule_walks_down_from_pure_noise(scheduler: str) -> None:
    """But for one, which counts from the second of all levels."""
    sigmas = [level.sigma for level in sigma_schedule(FlowScheduler(**DEV).levels(1024), scheduler, 6)]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[0] == pytest.approx(1, abs=0.1 if scheduler == "ddim_uniform" else 1e-6)
    assert sigmas[-1] == 0
