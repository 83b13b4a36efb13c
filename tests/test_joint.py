"""Joint composition: everyone takes each step together, and what is evaluated is what was planned."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load, save

from sampling_core.job import RenderJob, SamplerName
from sampling_core.levels import Level, beta_levels, flow_levels
from sampling_core.parsing import parse_job
from sampling_core.plan import cost, first_state, make_plan, region_masks, warnings
from sampling_core.sampler import Plan, iterate
from sampling_core.state import from_tensors, to_tensors
from tests.problems import GaussianData, PromptColors

LEVELS = beta_levels("v_prediction")
SAMPLERS = get_args(SamplerName)
LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
RIGHT = {"x": 0.5, "y": 0, "width": 0.5, "height": 1}
MIDDLE = {"center_x": 0.5, "center_y": 0.5, "radius_x": 0.3, "radius_y": 0.3}


def job(*regions: dict[str, Any], **fields: Any) -> RenderJob:
    numbered = [{"prompt": f"region {i}"} | region for i, region in enumerate(regions)]
    return parse_job({"prompt": "base", "steps": 6, "base_only_steps": 2, "regions": numbered} | fields)


def plan_of(asked: RenderJob, levels: Any = LEVELS) -> Plan:
    return make_plan(asked, levels, 8, region_masks(asked, {}, 8))


def colors(plan: Plan) -> dict[str, torch.Tensor]:
    """One number per prompt, as its embedding."""
    return {prompt: torch.full((1, 1, 1), float(i)) for i, prompt in enumerate(plan.prompts)}


def test_each_region_gets_its_prompt_and_the_base_the_rest() -> None:
    asked = job({"mask": LEFT}, {"mask": MIDDLE, "feather": 24}, cfg=1.0)
    plan = plan_of(asked)
    embeddings = colors(plan)
    state = first_state(asked, plan, LEVELS, 4, 8)
    for reached, _ in iterate(plan, state, PromptColors(), embeddings):
        state = reached
    weights = {p.name: w for p, w in plan.active(plan.steps - 1).values()}
    wanted = sum(weights[p.name] * embeddings[p.guidance.positive].item() for p in plan.participants)
    torch.testing.assert_close(state.x[0, 0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solvers", list(itertools.combinations_with_replacement(SAMPLERS, 2)))
@pytest.mark.parametrize("levels", [LEVELS, flow_levels()], ids=["diffusion", "flow"])
def test_every_cell_has_the_noise_of_its_level(solvers: tuple[str, str], levels: Any) -> None:
    """With data at a known point, what is left after removing it is noise; it must have each level's sigma."""
    asked = job(
        {"mask": LEFT, "feather": 16, "sampler": solvers[0]},
        {"mask": MIDDLE, "feather": 24, "sampler": solvers[1]},
        {"mask": {"points": [[0.1, 0.1], [0.9, 0.2], [0.5, 0.9]]}, "weight": 3},
        cfg=1.0,
    )
    plan = plan_of(asked, levels)
    state = first_state(asked, plan, levels, 4, 8)
    unit = (state.x - plan.ladder[0].alpha * 0.7) / plan.ladder[0].sigma
    network = GaussianData(spread=0.0, mean=0.7)
    embeddings = colors(plan)
    for reached, _ in iterate(plan, state, network, embeddings):
        level: Level = plan.ladder[reached.step]
        noise = reached.x - level.alpha * 0.7
        torch.testing.assert_close(noise, level.sigma * unit, rtol=1e-4, atol=2e-5)
        state = reached
    assert state.step == plan.steps


def _counted(asked: RenderJob) -> list[tuple[int, int]]:
    return [(count.evaluations, count.forwards) for count in cost(plan_of(asked)).per_step]


def test_rows_are_what_the_field_expects() -> None:
    """R + 2 rows a step with a shared negative, R + 1 under full cover, R + 1 and R without guidance."""
    some, all_ = ({"mask": LEFT}, {"mask": MIDDLE}), ({"mask": LEFT}, {"mask": RIGHT})
    assert _counted(job(*some)) == [(2, 1)] * 2 + [(4, 1)] * 4
    assert _counted(job(*all_)) == [(2, 1)] * 2 + [(3, 1)] * 4
    assert _counted(job(*some, cfg=1.0)) == [(1, 1)] * 2 + [(3, 1)] * 4
    assert _counted(job(*all_, cfg=1.0)) == [(1, 1)] * 2 + [(2, 1)] * 4


def test_own_negative_is_a_row_of_its_own_and_equal_prompts_share_theirs() -> None:
    own = job({"mask": LEFT, "negative_prompt": "fog"}, {"mask": MIDDLE})
    assert _counted(own)[-1] == (5, 1)
    same = job({"mask": LEFT, "prompt": "x"}, {"mask": MIDDLE, "prompt": "x"})
    assert _counted(same)[-1] == (3, 1)


def test_heun_adds_a_round_for_its_own_rows_only() -> None:
    asked = job({"mask": LEFT, "sampler": "heun"}, {"mask": MIDDLE}, sampler="euler")
    assert _counted(asked) == [(2, 1)] * 2 + [(6, 2)] * 3 + [(4, 1)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_plan_counts_what_is_executed(sampler: str) -> None:
    asked = job({"mask": LEFT, "sampler": "heun"}, {"mask": MIDDLE, "cfg": 1.0}, sampler=sampler)
    plan = plan_of(asked)
    network = PromptColors()
    state = first_state(asked, plan, LEVELS, 4, 8)
    executed = [count for _, count in iterate(plan, state, network, colors(plan))]
    assert executed == list(cost(plan).per_step)
    assert sum(rows for rows, _ in network.forwards) == cost(plan).evaluations
    assert len(network.forwards) == cost(plan).forwards


@pytest.mark.parametrize("stop", range(6))
def test_resumes_bit_equal_at_every_step(stop: int) -> None:
    asked = job({"mask": LEFT, "sampler": "heun"}, {"mask": MIDDLE, "feather": 20}, sampler="dpmpp_2m", cfg=2.5)
    plan = plan_of(asked)
    network, embeddings = GaussianData(), colors(plan)
    states = [first_state(asked, plan, LEVELS, 4, 8)]
    states += [state for state, _ in iterate(plan, states[0], network, embeddings)]
    resumed = from_tensors(plan, load(save(to_tensors(states[stop]))))
    for reached, _ in iterate(plan, resumed, network, embeddings):
        resumed = reached
    assert torch.equal(resumed.x, states[-1].x)


def test_without_regions_the_base_has_every_step() -> None:
    plan = plan_of(job())
    assert plan.base_only_steps == plan.steps == 6
    assert plan.prompts == ("", "base")


def test_warnings() -> None:
    covered = job({"mask": LEFT}, {"mask": RIGHT}, base_only_steps=0, denoise=0.5, width=1024)
    found = warnings(covered, plan_of(covered), 128)
    assert [text.split()[0] for text in found] == ["denoise", "prompt:", "width"]
    assert not warnings(job({"mask": LEFT}), plan_of(job({"mask": LEFT})), 128)
