"""Attention composition: the prompts of all regions share one row, and all else is a joint run of one participant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import Count
from prefect_regional_diffusion.sampling_core.engine.cache_keys import segment_keys
from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance, ExpertGuidance
from prefect_regional_diffusion.sampling_core.engine.joint_run import State
from prefect_regional_diffusion.sampling_core.engine.joint_sampling_run import JointSamplingRun
from prefect_regional_diffusion.sampling_core.engine.prompt_map import merged
from prefect_regional_diffusion.sampling_core.job.grid_job import cells
from prefect_regional_diffusion.sampling_core.job.parsing import BadJob, parse_grid, parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.planning.canonical_job import job_hash
from prefect_regional_diffusion.sampling_core.planning.compile import compose, cost, warnings
from prefect_regional_diffusion.sampling_core.planning.joint import joint
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from prefect_regional_diffusion.sampling_core.planning.savings import savings
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import beta_levels
from tests.problems import GaussianData, PromptColors, using

LEVELS = beta_levels("v_prediction")
LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
MIDDLE = {"center_x": 0.5, "center_y": 0.5, "radius_x": 0.3, "radius_y": 0.3}
WHOLE = {"x": 0, "y": 0, "width": 1, "height": 1}
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "one": [{"mask": LEFT}],
    "soft": [{"mask": LEFT, "feather": 24}, {"mask": MIDDLE, "feather": 16, "weight": 3.0}],
    "cover": [{"mask": WHOLE}, {"mask": MIDDLE}],
    "steps": [{"mask": LEFT, "start_at_step": 1, "end_at_step": 3}, {"mask": MIDDLE, "start_at_step": 2}],
    "eight": [{"mask": MIDDLE | {"center_x": 0.1 * i, "radius_x": 0.1}, "feather": 8} for i in range(1, 9)],
}


def job(*regions: dict[str, Any], **fields: Any) -> RenderJob:
    numbered = [{"prompt": f"region {i}"} | region for i, region in enumerate(regions)]
    return parse_job({"prompt": "base", "steps": 5, "composition": "attention", "regions": numbered} | fields)


def run_of(asked: RenderJob) -> JointSamplingRun:
    empty = torch.zeros(asked.pictures, 4, asked.height // 8, asked.width // 8)
    return joint(resolve(asked), LEVELS, empty, region_masks(resolve(asked), {}, 8))


def walked(
    run: JointSamplingRun, network: Any, since: State | None = None, most: int | None = None
) -> list[tuple[State, Count]]:
    colors = {
        text: torch.full((1, 1, 1), len(text) + ord(text[-1:] or " ") / 64)
        for text in (key.prompt or "" for key in run.prompts)
    }
    context = using(network, colors, "embedded")
    return list(iterate(run, since or run.initial_state(), replace(context, max_forward_rows=most)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_two_rows_however_many_regions_there_are(layout: str) -> None:
    """And the plan says so, because it drives the same loop."""
    run = run_of(job(*LAYOUTS[layout]))
    network, planned = PromptColors(), cost(run)
    assert [count for _, count in walked(run, network)] == list(planned.per_step)
    assert planned.per_step == (Count(2, 1),) * 5
    assert [rows for rows, _ in network.forwards] == [2] * 5


def test_samplers_that_ask_twice_ask_for_the_same_two() -> None:
    assert cost(run_of(job(*LAYOUTS["eight"], sampler="heun"))).per_step == (Count(4, 2),) * 4 + (Count(2, 1),)


def test_without_guidance_it_is_one_row() -> None:
    assert cost(run_of(job(*LAYOUTS["eight"], cfg=1.0))).per_step == (Count(1, 1),) * 5
    assert cost(run_of(job(*LAYOUTS["eight"], cfg=1.0, sampler="euler_cfg_pp"))).per_step == (Count(2, 1),) * 5


@pytest.mark.parametrize("overlap", ["weight", "order"])
@pytest.mark.parametrize("layout", ["one", "soft", "cover", "eight"])
def test_each_place_has_its_prompt_by_the_weights_of_joint_composition(layout: str, overlap: str) -> None:
    """A denoiser that answers each cell by its prompts alone cannot tell the two apart."""
    ends: list[Tensor] = []
    for composition in ("joint", "attention"):
        asked = job(*LAYOUTS[layout], composition=composition, overlap=overlap, base_only_steps=1, sampler="euler")
        run = run_of(asked)
        ends.append(walked(run, PromptColors())[-1][0].x)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stop", range(5))
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "heun"])
def test_resumes_bit_equal_at_every_step(stop: int, sampler: str) -> None:
    asked = job(*LAYOUTS["steps"], sampler=sampler, cfg=2.5)
    run = run_of(asked)
    states = [run.initial_state(), *(state for state, _ in walked(run, PromptColors()))]
    resumed = run.from_tensors(load(save(run.to_tensors(states[stop]))))
    assert torch.equal(walked(run_of(asked), PromptColors(), resumed)[-1][0].x, states[-1].x)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_forward_may_be_split(most: int) -> None:
    asked = job(*LAYOUTS["soft"], batch_size=3, negative_prompt="ugly")
    whole, parts = (walked(run_of(asked), PromptColors(), most=rows) for rows in (None, most))
    torch.testing.assert_close(parts[-1][0].x, whole[-1][0].x)
    assert parts[0][1] == Count(6, -(-6 // most))


@pytest.mark.parametrize(
    "fields", [{}, {"composition": "joint", "arrangement": "attention"}], ids=["attention", "mixed"]
)
def test_without_room_a_forward_is_split(fields: dict[str, Any]) -> None:
    class Small(PromptColors):
        def __call__(self, x: Tensor, *others: Any) -> Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError("no room")
            return super().__call__(x, *others)

    asked = job(*LAYOUTS["soft"], batch_size=3, negative_prompt="ugly", **fields)
    small = Small()
    whole, parts = (walked(run_of(asked), network) for network in (PromptColors(), small))
    assert torch.equal(parts[-1][0].x, whole[-1][0].x)
    assert max(rows for rows, _ in small.forwards) == 2
    assert max(count.forwards for _, count in whole) == 1
    assert parts[0][1].evaluations == whole[0][1].evaluations


def test_regions_take_part_in_their_steps() -> None:
    run = run_of(job(*LAYOUTS["steps"]))
    prompts = [[key.prompt for key in run.plan.participants[0].view(step)[0].prompt_keys] for step in range(5)]
    base, first, second = "base", "region 0", "region 1"
    positives = [[base], [base, first], [base, first, second], [base, second], [base, second]]
    assert prompts == [["", *positive] for positive in positives]
    assert run.base_only_steps == 1
    assert run.plan.changes == [0, 1, 2, 3]


def test_it_begins_as_joint_composition_does_where_the_base_is_alone() -> None:
    """States of steps in which the base is alone are one in the store."""
    names = [
        segment_keys(run_of(job(*LAYOUTS["one"], composition=composition, base_only_steps=2)).segments(), "", {})
        for composition in ("joint", "attention")
    ]
    assert names[0][0] == names[1][0]
    assert names[0][1].name != names[1][1].name


def test_all_that_determines_a_latent_is_in_its_key() -> None:
    def key(*regions: dict[str, Any], **fields: Any) -> str:
        return segment_keys(run_of(job(*regions, **fields)).segments(), "", {})[-1].name

    left, middle = {"mask": LEFT, "feather": 8}, {"mask": MIDDLE}
    wanted = key(left, middle)
    assert key(left, middle) == wanted
    others = [
        key(left | {"feather": 16}, middle),
        key(left | {"prompt": "other"}, middle),
        key(left | {"negative_prompt": "other"}, middle),
        key(left, middle | {"weight": 2.0}),
        key(left, middle, overlap="order"),
        key(middle | {"prompt": "region 1"}, left | {"prompt": "region 0"}, overlap="order"),
        key(left, middle, negative_prompt="other"),
        key(left, middle, composition="joint"),
    ]
    assert len({wanted, *others}) == 1 + len(others)


def test_negative_prompts_share_the_other_row() -> None:
    run = run_of(job({"mask": LEFT, "negative_prompt": "blur"}, {"mask": MIDDLE}, negative_prompt="ugly"))
    guidance = run.plan.participants[0].guidance
    assert isinstance(guidance, ClassifierFreeGuidance)
    assert guidance.negative_map is not None
    assert guidance.negative_map.prompts == ("ugly", "blur")
    assert guidance.positive_map is not None
    assert guidance.positive_map.prompts == ("base", "region 0", "region 1")
    negative, positive = guidance.negative_map.weights, guidance.positive_map.weights
    torch.testing.assert_close(negative[1], positive[1])
    torch.testing.assert_close(negative[0], positive[0] + positive[2])
    assert cost(run).per_step == (Count(2, 1),) * 5


def test_equal_prompts_are_one_and_hidden_ones_none() -> None:
    half = torch.zeros(4, 4)
    half[:, 2:] = 0.5
    assert merged(["a", "a"], [half, 1 - half]) == ("a", None)
    assert merged(["a", "b"], [0 * half, 0 * half + 1]) == ("b", None)
    first, prompt_map = merged(["a", "b", "a"], [half, half, 1 - half])
    assert first == "a"
    assert prompt_map is not None
    assert prompt_map.prompts == ("a", "b")
    torch.testing.assert_close(prompt_map.weights[1], half / (1 + half))
    torch.testing.assert_close(sum(prompt_map.weights), torch.ones(4, 4))


@pytest.mark.parametrize("region", [{"mask": WHOLE}, {"mask": MIDDLE, "feather": 20, "prompt": "region 0"}])
def test_one_prompt_on_the_whole_canvas_is_a_plain_run(region: dict[str, Any]) -> None:
    """A region that covers the base, and one with the base's prompt: the same latents' keys, so the same bits."""
    asked, plain = job(region, prompt="region 0"), job(prompt="region 0")
    names = [[key.name for key in segment_keys(run_of(one).segments(), "", {})] for one in (asked, plain)]
    assert names[0] == names[1]
    covered = job({"mask": WHOLE}, prompt="never seen")
    (segment,) = segment_keys(run_of(covered).segments(), "", {})
    assert [segment.name] == names[1]


def test_without_regions_it_is_the_job_of_joint_composition() -> None:
    assert job_hash(resolve(job())) == job_hash(resolve(job(composition="joint")))
    assert job_hash(resolve(job({"mask": LEFT}))) != job_hash(resolve(job({"mask": LEFT}, composition="joint")))


def test_plan_and_warnings_tell_of_it() -> None:
    asked = job({"mask": WHOLE, "name": "all"}, {"mask": MIDDLE, "name": "eye"}, {"mask": LEFT, "weight": 0})
    run = run_of(asked)
    told = savings(run, cost(run))
    assert (
        "base, all, eye, region 3: their prompts share one row, each with its weight in the network's attention" in told
    )
    assert any("the regions cover the canvas" in line for line in told)
    found = warnings(resolve(asked), run, 128)
    assert any("the base prompt is never used" in line for line in found)
    assert any(line.startswith("regions.2: ") for line in found), "it lies beneath the first one"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sampler", "heun"),
        ("cfg", 3.0),
        ("model", "other"),
        ("loras", [{"file": "a.safetensors"}]),
        ("controls", []),
        ("image_prompts", []),
        ("window", "auto"),
        ("window", {"margin": 8}),
    ],
)
def test_what_needs_a_row_of_its_own_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(BadJob) as refused:
        job({"mask": LEFT}, {"mask": MIDDLE, field: value})
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"regions.1.{field}: ")
    assert "left out: all regions share one row, with the job's; composition: joint gives each its own" in line


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"window": "auto"}, "window: 'auto' is not allowed; allowed: canvas: all regions share one row"),
        ({"sampler": "dpm_fast"}, "with attention composition"),
        ({"regions": [{"prompt": "a", "mask": LEFT, "scheduler": "beta"}]}, "left out with attention composition"),
        ({"regions": [{"prompt": "a", "mask": LEFT, "sigma_factor": 2}]}, "left out with attention composition"),
        ({"node": {"name": "TwoSamplersForMask"}}, "node"),
    ],
)
def test_what_joint_composition_refuses_is_refused_here_too(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(BadJob) as refused:
        job(**fields)
    assert line in str(refused.value)


def test_cells_of_a_grid_fork_from_one_run() -> None:
    grid = parse_grid(
        {
            "job": {
                "prompt": "base",
                "steps": 4,
                "composition": "attention",
                "regions": [{"prompt": "a", "mask": LEFT}],
            },
            "mode": "Sample then Fork",
            "rows": 1,
            "cells": [{"row": 0, "column": 1, "prompt": "other"}],
        }
    )
    runs = [run_of(cell.job) for cell in cells(grid)]
    first, second = (segment_keys(run.segments(), "", {}) for run in runs)
    assert first[0] == second[0], "two steps are shared"
    assert second[1].first == 2
    last = runs[1].plan.participants[0].view(3)[0]
    assert [key.prompt for key in last.prompt_keys] == ["", "a", "other"]


def test_noise_keeps_its_level_where_prompts_come_and_go() -> None:
    """The denoiser knows the answer, so all else in a latent is noise (tests/test_noise_truth.py has more)."""
    run = run_of(job(*LAYOUTS["steps"], sampler="dpmpp_2m"))
    network = GaussianData(spread=0.0, mean=0.7)
    schedule = run.plan.sigma_schedule
    unit = (run.noised - schedule[0].alpha * 0.7) / schedule[0].sigma
    for state, _ in walked(run, network):
        level = schedule[state.step]
        noise = state.x - level.alpha * 0.7
        torch.testing.assert_close(noise, level.sigma * unit, rtol=1e-4, atol=1e-4)


def test_a_second_model_draws_the_last_steps_with_the_same_prompts() -> None:
    asked = job({"mask": LEFT, "negative_prompt": "blur"}, refiner={"model": "other", "start": 0.6})
    guidance = run_of(asked).plan.participants[0].guidance
    assert isinstance(guidance, ExpertGuidance)
    assert [key.prompt for key in guidance.lower.prompt_keys] == ["", "blur", "base", "region 0"]
    assert {key.model for key in guidance.lower.prompt_keys} == {"other"}
    assert guidance.lower.positive_map is guidance.upper.positive_map


HEUN: dict[str, Any] = {"mask": MIDDLE | {"center_x": 0.7, "radius_x": 0.2}, "sampler": "heun", "feather": 12}


def mixed(*regions: dict[str, Any], **fields: Any) -> RenderJob:
    """A job of joint composition in which prompts may share a row."""
    return job(*regions, **({"composition": "joint", "arrangement": "attention", "base_only_steps": 1} | fields))


def test_regions_that_differ_in_their_prompts_share_a_row_beside_others() -> None:
    """The base and two regions; a second pair that has another sampler; and one alone with another cfg."""
    regions = [{"mask": LEFT}, HEUN, {"mask": MIDDLE}, HEUN | {"mask": LEFT}, {"mask": MIDDLE, "cfg": 3.0}]
    run = run_of(mixed(*regions, sampler="euler"))
    names = [one.name for one in run.plan.participants]
    assert names == ["base, region 1, region 3", "region 2, region 4", "region 5"]
    # Three positive rows and the negative one that all have, and Heun's second question with one of its own.
    assert cost(run).per_step == (Count(2, 1), *[Count(6, 2, 2)] * 3, Count(4, 1, 2))
    assert [count for _, count in walked(run, PromptColors())] == list(cost(run).per_step)


@pytest.mark.parametrize("layout", ["one", "soft", "cover", "eight"])
def test_a_mixed_run_has_each_prompt_where_rows_have_it(layout: str) -> None:
    """Solvers of one order that answer alike: what a cell gets hangs on the weights alone."""
    regions = [*LAYOUTS[layout], HEUN]
    ends = [
        walked(run_of(mixed(*regions, arrangement=name, sampler="euler")), PromptColors())[-1][0].x
        for name in ("rows", "attention")
    ]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stop", range(5))
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_a_mixed_run_resumes_bit_equal_at_every_step(stop: int, sampler: str) -> None:
    regions = [*LAYOUTS["steps"], HEUN, HEUN | {"mask": LEFT, "start_at_step": 2}]
    asked = mixed(*regions, sampler=sampler, cfg=2.5)
    states = [run_of(asked).initial_state(), *(state for state, _ in walked(run_of(asked), PromptColors()))]
    resumed = run_of(asked).from_tensors(load(save(run_of(asked).to_tensors(states[stop]))))
    assert torch.equal(walked(run_of(asked), PromptColors(), resumed)[-1][0].x, states[-1].x)


def test_windows_that_were_asked_for_keep_their_rows() -> None:
    corner = {"mask": {"x": 0, "y": 0, "width": 0.25, "height": 0.25}}
    free, asked = corner | {"window": "auto"}, corner | {"window": {"margin": 8}}
    run = run_of(mixed(free, asked, {"mask": MIDDLE}, width=256, height=256))
    assert [one.name for one in run.plan.participants] == ["base, region 1, region 3", "region 2"]
    assert [one.crop is None for one in run.plan.participants] == [True, False]


def composed(asked: RenderJob) -> JointSamplingRun:
    empty = torch.zeros(asked.pictures, 4, asked.height // 8, asked.width // 8)
    run = compose(resolve(asked), {"embedded": LEVELS}, empty, region_masks(resolve(asked), {}, 8))
    assert isinstance(run, JointSamplingRun)
    return run


def test_auto_is_what_evaluates_least_and_says_why() -> None:
    shared = composed(mixed({"mask": LEFT}, {"mask": MIDDLE}, arrangement="auto"))
    assert len(shared.plan.participants) == 1
    assert "arrangement (auto): attention, as it is 10 evaluations of the canvas, and rows are 18" in shared.savings()
    quarters = [
        {"mask": {"x": x, "y": y, "width": 0.5, "height": 0.5}, "window": {"margin": 0}}
        for x in (0, 0.5)
        for y in (0, 0.5)
    ]
    alone = composed(mixed(*quarters, arrangement="auto", width=256, height=256))
    assert len(alone.plan.participants) == 5
    (line,) = [line for line in alone.savings() if line.startswith("arrangement")]
    assert line.startswith("arrangement (auto): rows, as attention would be 10 evaluations")


def test_keys_tell_arrangements_apart_and_rows_are_as_ever() -> None:
    regions = [{"mask": LEFT}, {"mask": MIDDLE}]
    names = [
        segment_keys(composed(mixed(*regions, arrangement=name)).segments(), "", {})[-1].name
        for name in ("rows", "attention", "auto")
    ]
    assert names[1] == names[2] != names[0]
    plain = job(*regions, composition="joint", base_only_steps=1)
    assert segment_keys(composed(plain).segments(), "", {})[-1].name == names[0]
    assert job_hash(resolve(plain)) == job_hash(resolve(mixed(*regions, arrangement="rows")))
    assert len({job_hash(resolve(mixed(*regions, arrangement=name))) for name in ("rows", "attention", "auto")}) == 3


@pytest.mark.parametrize("composition", ["attention", "sequential"])
def test_an_arrangement_is_for_joint_composition(composition: str) -> None:
    with pytest.raises(BadJob, match="arrangement: 'auto' is not allowed; allowed: left out with"):
        job({"mask": LEFT}, composition=composition, arrangement="auto", sampler="euler")
