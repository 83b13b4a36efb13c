"""Schedules against their definitions; the conformance tests compare them with the recorded ones."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.names import SchedulerName
from prefect_regional_diffusion.sampling_core.schedules import (
    SCHEDULES,
    TABLES,
    align_your_steps,
    gits,
    original_sigmas,
    sigma_schedule,
)
from prefect_regional_diffusion.sampling_core.schedules.gits_rows import ROWS
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels, beta_levels, flow_levels
from prefect_regional_diffusion.sampling_core.schedules.tables import AYS, MOST_GITS_STEPS, AYSModel

MODELS: dict[str, ModelLevels] = {
    "eps": beta_levels("epsilon"),
    "v": beta_levels("v_prediction"),
    "flow": flow_levels(),
}
SUITED = [(m, s) for m in MODELS for s in SCHEDULES if m != "flow" or s not in TABLES]
OF_OTHER_LENGTH = ("ddim_uniform", "beta")


@given(
    suited=st.sampled_from(SUITED),
    steps=st.integers(2, 50),
    denoise=st.floats(0.05, 1),
    drop=st.booleans(),
)
def test_ladders_fall_to_zero(suited: tuple[str, str], steps: int, denoise: float, drop: bool) -> None:
    model, scheduler = suited
    found = sigma_schedule(MODELS[model], scheduler, steps, denoise, drop_penultimate=drop)
    sigmas = [level.sigma for level in found]
    if scheduler not in OF_OTHER_LENGTH:
        assert len(sigmas) == steps + 1
    assert sigmas[-1] == 0
    assert all(high > low for high, low in pairwise(sigmas))
    assert all(level.alpha == (1 - level.sigma if model == "flow" else 1) for level in found)


@pytest.mark.parametrize("scheduler", sorted(set(SCHEDULES) - set(TABLES) - {"ddim_uniform"}))
@pytest.mark.parametrize("model", sorted(MODELS))
def test_starts_at_the_largest_level(model: str, scheduler: str) -> None:
    assert sigma_schedule(MODELS[model], scheduler, 10)[0].sigma == pytest.approx(MODELS[model].largest, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eps", "cosine", 10, 1.0), "scheduler: 'cosine'"),
        (("eps", "GITS[coeff=1.2]", 10, 1.0), "scheduler: 'GITS"),
        (("flow", "AYS SD1", 10, 1.0), "scheduler: 'AYS SD1'.*flow"),
        (("eps", "normal", 0, 1.0), "steps: 0"),
        (("eps", "normal", 10, 0.0), "denoise: 0.0"),
        (("eps", "GITS", 1, 1.0), "steps: 1"),
        (("eps", "kl_optimal", 1, 1.0), "steps: 1"),
    ],
)
def test_refuses(arguments: tuple[str, str, int, float], message: str) -> None:
    model, scheduler, steps, denoise = arguments
    with pytest.raises(BadInput, match=message):
        sigma_schedule(MODELS[model], scheduler, steps, denoise)


def test_registry_is_what_the_job_allows() -> None:
    assert set(get_args(SchedulerName)) == set(SCHEDULES)


def test_whole_number_of_steps_survives_division() -> None:
    """7 / 0.07 is 99.99999999999999: our schedule has 100 steps all the same, that of the originals 99."""
    levels = MODELS["eps"]
    assert sigma_schedule(levels, "normal", 7, 0.07) == sigma_schedule(levels, "normal", 100)[-8:]
    assert original_sigmas(levels, "euler", "normal", 7, 0.07) == original_sigmas(levels, "euler", "normal", 99)[-8:]


def test_originals_take_no_steps_at_denoise_zero() -> None:
    assert original_sigmas(MODELS["eps"], "euler", "karras", 4, 0.0) == ()


def test_originals_compute_on_with_one_step_of_kl_optimal() -> None:
    first, last = original_sigmas(MODELS["eps"], "euler", "kl_optimal", 1)
    assert math.isnan(first)
    assert last == 0


@pytest.mark.parametrize("sampler", ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"])
def test_penultimate_level_is_dropped(sampler: str) -> None:
    *longer, _, zero = original_sigmas(MODELS["eps"], "euler", "karras", 11)
    assert original_sigmas(MODELS["eps"], sampler, "karras", 10) == (*longer, zero)
    dropped = sigma_schedule(MODELS["eps"], "karras", 10, drop_penultimate=True)
    assert [level.sigma for level in dropped] == [*longer, zero]


@pytest.mark.parametrize(("steps", "intervals"), [(1, 1), (10, 10), (20, 20), (21, 22), (30, 31), (300, 333)])
def test_ddim_uniform_has_intervals_too_many(steps: int, intervals: int) -> None:
    assert len(sigma_schedule(MODELS["eps"], "ddim_uniform", steps)) == intervals + 1


def test_beta_takes_coinciding_timesteps_once() -> None:
    assert len(sigma_schedule(MODELS["eps"], "beta", 100)) == 101
    found = [level.sigma for level in sigma_schedule(MODELS["eps"], "beta", 1000)]
    assert len(found) < 1001
    assert all(high > low for high, low in pairwise(found))


@pytest.mark.parametrize("model", ["SD1", "SDXL", "SVD"])
def test_align_your_steps_is_its_table_at_ten_steps(model: AYSModel) -> None:
    assert align_your_steps(model, 10) == [*AYS[model][:-1], 0.0]
    # Twice the steps have the table's levels among them.
    assert align_your_steps(model, 20)[::2] == pytest.approx([*AYS[model][:-1], 0.0])


@pytest.mark.parametrize("coefficient", sorted(ROWS))
def test_gits_schedules_come_from_one_optimum(coefficient: float) -> None:
    """With k steps left at a level, the best next level is one and the same in all schedules of a coefficient."""
    following: dict[tuple[float, int], float] = {}
    for steps in range(2, MOST_GITS_STEPS + 1):
        found = gits(steps, coefficient)
        assert len(found) == steps + 1
        for left, (high, low) in zip(range(steps, 0, -1), pairwise(found), strict=True):
            assert high > low
            assert following.setdefault((high, left), low) == low


def test_gits_coefficients() -> None:
    assert gits(10) == gits(10, 1.2) == gits(10, 1.2000000001)
    assert gits(10, 0.8)[5] > gits(10, 1.5)[5], "a larger coefficient has the finer end"
    assert len(gits(100)) == 101
    with pytest.raises(BadInput, match="coefficient: 2"):
        gits(10, 2.0)
