"""With a denoiser that knows the answer, the rest of a latent is noise: of the schedule's level, at every cell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

import pytest
import torch

from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.joint_sampling_run import JointSamplingRun
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.names import SamplerName
from prefect_regional_diffusion.sampling_core.noise.step_noise import CounterBasedNoise
from prefect_regional_diffusion.sampling_core.planning.joint import joint
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels, beta_levels, flow_levels
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS
from tests.problems import GaussianData, using

CHANNELS = 1024
"""So many that the spread over them tells the noise level of a single cell."""
MEAN = 0.7
IPNDM_V = 1e-2
"""The weights that ComfyUI has for its fourth order do not quite sum to 1 on uneven schedules; pictures hang on it."""
KINDS = {"diffusion": beta_levels("epsilon"), "flow": flow_levels()}
SAMPLERS = [name for name in get_args(SamplerName) if name not in {"dpm_fast", "dpm_adaptive"}]
DETERMINISTIC = [name for name in SAMPLERS if SOLVERS[name].order > 0]
STOCHASTIC = [name for name in SAMPLERS if SOLVERS[name].order == 0 and not name.endswith("_gpu")]

SOFT = {"mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}, "feather": 32}
OVERLAPPING = {"mask": {"center_x": 0.5, "center_y": 0.5, "radius_x": 0.4, "radius_y": 0.3}, "feather": 24}
NESTED = {"mask": {"x": 0.4, "y": 0.4, "width": 0.25, "height": 0.2}}
FULL = {"mask": {"x": 0, "y": 0, "width": 1, "height": 1}, "weight": 0.5}
LAYOUTS = {
    "none": [],
    "soft": [SOFT],
    "overlapping": [SOFT, OVERLAPPING],
    "nested": [OVERLAPPING, NESTED],
    "full cover": [FULL, OVERLAPPING],
    "windows": [
        FULL | {"end_at_step": 3},
        SOFT | {"start_at_step": 4},
        NESTED | {"start_at_step": 2, "end_at_step": 5},
    ],
    "away for a step": [FULL | {"start_at_step": 4, "end_at_step": 5}, OVERLAPPING],
    "eight": [SOFT, OVERLAPPING, NESTED, FULL, SOFT | {"weight": 3}, NESTED | {"feather": 16}, OVERLAPPING, SOFT],
}


def run_of(levels: ModelLevels, regions: list[dict[str, Any]], channels: int, **fields: Any) -> JointSamplingRun:
    numbered = [{"prompt": "region"} | region for region in regions]
    asked: RenderJob = parse_job(
        {"prompt": "base", "steps": 7, "cfg": 1.0, "base_only_steps": 1, "regions": numbered} | fields
    )
    return joint(resolve(asked), levels, torch.zeros(1, channels, 16, 16), region_masks(resolve(asked), {}, 8))


def noises(run: JointSamplingRun) -> list[tuple[float, torch.Tensor]]:
    """After every step: the level's sigma, and what the latent has beside the known answer."""
    network = using(GaussianData(spread=0.0, mean=MEAN), {"base": torch.zeros(1, 1, 1)} | _REGION, "embedded")
    sigma_schedule = run.plan.sigma_schedule
    return [
        (sigma_schedule[state.step].sigma, state.x - sigma_schedule[state.step].alpha * MEAN)
        for state, _ in iterate(run, run.initial_state(), network)
    ]


_REGION = {name: torch.zeros(1, 1, 1) for name in ("region", "")}


@pytest.fixture(autouse=True, scope="module")
def drawn_once() -> Iterator[None]:
    """A Brownian increment depends on its path and its levels alone: it is drawn once for all runs here."""
    draw, drawn = CounterBasedNoise.brownian_increment, dict[tuple[object, ...], torch.Tensor]()

    def draw_once(noise: CounterBasedNoise, *levels: float) -> torch.Tensor:
        key = (noise.identity, levels)
        if key not in drawn:
            drawn[key] = draw(noise, *levels)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CounterBasedNoise, "brownian_increment", draw_once)
        yield


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlap", ["weight", "order"])
def test_deterministic_samplers_keep_the_level_to_the_last_digits(layout: str, kind: str, overlap: str) -> None:
    """Every two of them beside each other, in every layout; at the end nothing is left."""
    for one, other in itertools.pairwise([*DETERMINISTIC, DETERMINISTIC[0]]):
        samplers = itertools.cycle([other, one])
        regions = [region | {"sampler": next(samplers)} for region in LAYOUTS[layout]]
        run = run_of(KINDS[kind], regions, 16, sampler=one, overlap=overlap)
        unit = _spread(run.noised - run.plan.sigma_schedule[0].alpha * MEAN) / run.plan.sigma_schedule[0].sigma
        *during, (_, left) = noises(run)
        for sigma, noise in during:
            allowed = IPNDM_V if "ipndm_v" in (one, other) else 1e-4
            torch.testing.assert_close(_spread(noise) / unit, torch.full_like(unit, sigma), rtol=allowed, atol=0)
        # UniPC ends a thousandth above 0, where log sigma still has a value.
        assert float(left.abs().max()) <= (5e-3 if "uni_pc" in one + other else 1e-5), (one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_that_share_a_row_keep_the_level(layout: str, kind: str) -> None:
    """To the bits of a run of the base alone: the denoiser answers all prompts alike, and there is one participant."""
    for sampler in (*DETERMINISTIC, "dpmpp_2m_sde"):
        shared = run_of(KINDS[kind], LAYOUTS[layout], 4, sampler=sampler, composition="attention")
        for (_, wanted), (_, noise) in zip(_noises_of_the_base(kind, sampler), noises(shared), strict=True):
            assert torch.equal(noise, wanted)


@cache
def _noises_of_the_base(kind: str, sampler: str) -> list[tuple[float, torch.Tensor]]:
    return noises(run_of(KINDS[kind], [], 4, sampler=sampler, composition="attention"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["overlapping", "windows", "away for a step", "eight"])
def test_regions_of_which_a_part_of_the_canvas_is_seen_keep_the_level(layout: str, kind: str) -> None:
    """To the bits of regions that the network sees the canvas for: it answers each cell by itself."""
    for sampler, other in itertools.pairwise([*DETERMINISTIC, DETERMINISTIC[0]]):
        samplers = itertools.cycle([other, sampler])
        regions = [region | {"sampler": next(samplers)} for region in LAYOUTS[layout]]
        whole, seen = (
            run_of(KINDS[kind], regions, 4, sampler=sampler, window=window) for window in ("canvas", {"full_steps": 2})
        )
        assert any(one.crop is not None for one in seen.plan.participants)
        for (_, wanted), (_, noise) in zip(noises(whole), noises(seen), strict=True):
            assert torch.equal(noise, wanted)


def _spread(noise: torch.Tensor) -> torch.Tensor:
    """The noise level of each cell [h, w], from its channels."""
    return noise[0].square().mean(dim=0).sqrt()


def _check_levels(run: JointSamplingRun) -> None:
    """Within the sampling error of so many channels, cell by cell, and closer on the average of all cells."""
    relative = 1 / math.sqrt(2 * CHANNELS)
    for sigma, noise in noises(run)[:-1]:
        spread = _spread(noise) / sigma
        assert float((spread - 1).abs().max()) < 6 * relative
        assert abs(float(spread.mean()) - 1) < 6 * relative / math.sqrt(spread.numel()) + 0.005


@pytest.mark.parametrize("sampler", STOCHASTIC)
@pytest.mark.parametrize("layout", ["soft", "overlapping", "eight"])
def test_stochastic_samplers_keep_the_level(sampler: str, layout: str) -> None:
    _check_levels(run_of(KINDS["diffusion"], LAYOUTS[layout], CHANNELS, sampler=sampler))


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_stochastic_samplers_keep_the_level_in_windows(sampler: str) -> None:
    _check_levels(run_of(KINDS["diffusion"], LAYOUTS["overlapping"], CHANNELS, sampler=sampler, window={}))


@pytest.mark.parametrize("sampler", STOCHASTIC)
@pytest.mark.parametrize("neighbour", ["euler", "dpmpp_2m", "lms", "euler_ancestral"])
def test_unlike_neighbours_keep_the_level_at_their_seam(sampler: str, neighbour: str) -> None:
    """A deterministic sampler beside a stochastic one, and two that draw unlike noise."""
    regions = [SOFT | {"sampler": sampler}, OVERLAPPING | {"sampler": neighbour}]
    _check_levels(run_of(KINDS["diffusion"], regions, CHANNELS, sampler=neighbour))


@pytest.mark.parametrize("sampler", ["euler_ancestral", "lcm", "dpmpp_3m_sde", "sa_solver"])
@pytest.mark.parametrize("base", DETERMINISTIC)
def test_what_an_unlike_neighbour_leaves_has_the_level(base: str, sampler: str) -> None:
    """Where it drew its own noise for a while, nothing that others remember of the latent holds any more."""
    regions = [
        FULL | {"sampler": sampler, "end_at_step": 3},
        SOFT | {"sampler": sampler, "end_at_step": 4},
        OVERLAPPING,
    ]
    _check_levels(run_of(KINDS["diffusion"], regions, CHANNELS, sampler=base, overlap="order"))
    # Never hidden, the base keeps stepping beside it.
    _check_levels(run_of(KINDS["diffusion"], regions[1:2], CHANNELS, sampler=base))


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize("seed", [7, 8])
def test_varied_noise_has_unit_variance_everywhere(method: str, seed: int) -> None:
    """Also at soft edges, where the original has none, and where the variation's seed is the job's own."""
    varied = {"variation_seed": seed, "variation_strength": 0.4, "variation_method": method}
    run = run_of(KINDS["diffusion"], [SOFT | varied, OVERLAPPING | varied], CHANNELS, seed=7)
    spread = _spread(run.noised) / math.sqrt(1 + run.plan.sigma_schedule[0].sigma ** 2)
    assert float((spread - 1).abs().max()) < 6 / math.sqrt(2 * CHANNELS)


def test_a_variation_changes_its_region_alone() -> None:
    plain = run_of(KINDS["diffusion"], [NESTED], 4)
    varied = run_of(KINDS["diffusion"], [NESTED | {"variation_seed": 3, "variation_strength": 0.5}], 4)
    changed = (plain.noised != varied.noised).any(dim=1)[0]
    assert torch.equal(changed, region_masks(resolve(_job([NESTED])), {}, 8)[0] > 0)


def _job(regions: list[dict[str, Any]]) -> RenderJob:
    return parse_job({"prompt": "base", "regions": [{"prompt": "region"} | region for region in regions]})
