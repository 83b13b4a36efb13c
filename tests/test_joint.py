"""Joint composition: everyone takes each step together, and what is evaluated is what was planned."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load, save

from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext
from prefect_regional_diffusion.sampling_core.engine.guidance import PromptKey
from prefect_regional_diffusion.sampling_core.engine.joint_run import State
from prefect_regional_diffusion.sampling_core.engine.joint_sampling_run import JointSamplingRun
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.parsing import BadJob, parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.names import SamplerName
from prefect_regional_diffusion.sampling_core.noise.initial import initial_noise
from prefect_regional_diffusion.sampling_core.planning.canonical_job import job_hash
from prefect_regional_diffusion.sampling_core.planning.compile import cost, warnings
from prefect_regional_diffusion.sampling_core.planning.joint import joint
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from prefect_regional_diffusion.sampling_core.planning.savings import savings
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import beta_levels
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS
from tests.problems import GaussianData, PromptColors, conditionings, prompt_of, using

LEVELS = beta_levels("v_prediction")
SAMPLERS = [name for name in get_args(SamplerName) if name not in {"dpm_fast", "dpm_adaptive"}]
DETERMINISTIC = [name for name in SAMPLERS if SOLVERS[name].order > 0]
LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
RIGHT = {"x": 0.5, "y": 0, "width": 0.5, "height": 1}
MIDDLE = {"center_x": 0.5, "center_y": 0.5, "radius_x": 0.3, "radius_y": 0.3}


def job(*regions: dict[str, Any], **fields: Any) -> RenderJob:
    numbered = [{"prompt": f"region {i}"} | region for i, region in enumerate(regions)]
    return parse_job({"prompt": "base", "steps": 6, "base_only_steps": 2, "regions": numbered} | fields)


def run_of(asked: RenderJob, levels: Any = LEVELS) -> JointSamplingRun:
    empty = torch.zeros(asked.pictures, 4, asked.height // 8, asked.width // 8)
    return joint(resolve(asked), levels, empty, region_masks(resolve(asked), {}, 8))


def colors(run: JointSamplingRun) -> dict[str | None, torch.Tensor]:
    """One number per prompt, as its embedding."""
    return {words.prompt: torch.full((1, 1, 1), float(i)) for i, words in enumerate(run.prompts)}


def walked(run: JointSamplingRun, network: Any, since: State | None = None) -> list[tuple[State, Count]]:
    """Every state that follows, with what it cost."""
    return list(iterate(run, since or run.initial_state(), using(network, colors(run), "embedded")))


def test_each_region_gets_its_prompt_and_the_base_the_rest() -> None:
    asked = job({"mask": LEFT}, {"mask": MIDDLE, "feather": 24}, cfg=1.0)
    run = run_of(asked)
    state, _ = walked(run, PromptColors())[-1]
    weights = {p.name: w for p, w in run.plan.active(run.steps - 1).values()}
    wanted = sum(weights[p.name] * colors(run)[prompt_of(p)].item() for p in run.plan.participants)
    torch.testing.assert_close(state.x[0, 0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - set(DETERMINISTIC)))
def test_fresh_noise_depends_on_seed_and_step_alone(sampler: str) -> None:
    """Twice the same bits, and other bits from another seed."""
    asked = job({"mask": LEFT}, sampler=sampler, cfg=1.0)
    first, again, other = (
        walked(run_of(asked.model_copy(update={"seed": seed})), GaussianData())[-1][0].x for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.isfinite(first).all()


def _counted(asked: RenderJob) -> list[tuple[int, int]]:
    return [(count.evaluations, count.forwards) for count in cost(run_of(asked)).per_step]


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
    run = run_of(asked)
    network, planned = PromptColors(), cost(run)
    assert [count for _, count in walked(run, network)] == list(planned.per_step)
    assert sum(rows for rows, _ in network.forwards) == planned.evaluations
    assert len(network.forwards) == planned.forwards


@pytest.mark.parametrize("stop", range(6))
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral"])
def test_resumes_bit_equal_at_every_step(stop: int, sampler: str) -> None:
    asked = job({"mask": LEFT, "sampler": "heun"}, {"mask": MIDDLE, "feather": 20}, sampler=sampler, cfg=2.5)
    run = run_of(asked)
    states = [run.initial_state(), *(state for state, _ in walked(run, GaussianData()))]
    resumed = run.from_tensors(load(save(run.to_tensors(states[stop]))))
    assert torch.equal(walked(run_of(asked), GaussianData(), resumed)[-1][0].x, states[-1].x)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_the_expected_picture_is_the_answer_of_a_denoiser_that_knows_it(sampler: str) -> None:
    run = run_of(job({"mask": LEFT}, {"mask": MIDDLE, "feather": 24}, cfg=1.0, sampler=sampler))
    states = [run.initial_state(), *(state for state, _ in walked(run, PromptColors()))]
    # The first steps are the base's alone.
    for before, state in pairwise(states[: run.base_only_steps + 1]):
        color = colors(run)["base"].expand_as(state.x)
        torch.testing.assert_close(run.predicted_clean(before, state), color, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(run.predicted_clean(*states[-2:]), states[-1].x)


def test_a_batch_holds_the_pictures_of_its_members() -> None:
    """Picture 1 of a batch of 2 is the one that is drawn alone by its index."""
    both = walked(run_of(job({"mask": LEFT}, batch_size=2, batch_index=[0, 1])), GaussianData())[-1][0].x
    alone = walked(run_of(job({"mask": LEFT}, batch_size=2, batch_index=[1])), GaussianData())[-1][0].x
    assert both.shape[0] == 2
    torch.testing.assert_close(both[1:], alone)


def test_without_regions_the_base_has_every_step() -> None:
    run = run_of(job())
    assert run.base_only_steps == run.steps == 6
    assert [words.prompt for words in run.prompts] == ["", "base"]


@pytest.mark.parametrize("overlap", ["weight", "order"])
def test_equal_meaning_draws_equal_latents(overlap: str) -> None:
    """Weights count for variations where they count for prompts, and nowhere else: the hash goes by that."""
    varied = {"variation_seed": 3, "variation_strength": 0.5}
    heavy, light = (
        job({"mask": LEFT, "weight": weight} | varied, {"mask": MIDDLE, "feather": 24} | varied, overlap=overlap)
        for weight in (9.0, 1.0)
    )
    same = torch.equal(run_of(heavy).noised, run_of(light).noised)
    assert same == (job_hash(resolve(heavy)) == job_hash(resolve(light))) == (overlap == "order")


def test_the_uppermost_region_varies_alone_where_regions_lie_in_order() -> None:
    below = {"mask": LEFT, "variation_seed": 3, "variation_strength": 0.5}
    above = {"mask": LEFT, "variation_seed": 5, "variation_strength": 0.5}
    both, upper = (run_of(job(*regions, overlap="order")).noised for regions in ((below, above), (above,)))
    torch.testing.assert_close(both, upper)


def test_warnings() -> None:
    covered = job({"mask": LEFT}, {"mask": RIGHT}, base_only_steps=0, denoise=0.5, width=1024)
    found = warnings(resolve(covered), run_of(covered), 128)
    assert [text.split()[0] for text in found] == ["denoise", "prompt:", "width"]
    assert not warnings(resolve(job({"mask": LEFT})), run_of(job({"mask": LEFT})), 128)
    weighted = job({"mask": LEFT, "prompt": "a (red:1.3) hat"}, prompt="a (quiet: lake)")
    assert [text.split(" is")[0] for text in warnings(resolve(weighted), run_of(weighted), 128)] == [
        "regions.0.prompt: (red:1.3)"
    ]
    # A stripe so soft that it has less than half of every cell, beside a sampler that carries another noise.
    faint = {"mask": {"x": 0.4, "y": 0, "width": 0.2, "height": 1}, "feather": 64, "sampler": "euler_ancestral"}
    hidden = job({"mask": LEFT}, faint, {"mask": LEFT}, overlap="order")
    lost = [text.split(":")[0] for text in warnings(resolve(hidden), run_of(hidden), 128)]
    assert lost == ["regions.0", "regions.1"]


def test_regions_enter_and_leave_at_their_steps() -> None:
    """One row (cfg 1) for everyone who is there: the base, and each region in its window."""
    early = {"mask": LEFT, "prompt": "early", "end_at_step": 3}
    late = {"mask": MIDDLE, "prompt": "late", "start_at_step": 4}
    run = run_of(job(early, late, cfg=1.0, base_only_steps=1))
    names = [[p.name for p, _ in run.plan.active(step).values()] for step in range(run.steps)]
    one, two = "region 1", "region 2"
    assert names == [["base"], ["base", one], ["base", one], ["base"], ["base", two], ["base", two]]
    assert [count.evaluations for _, count in walked(run, PromptColors())] == [1, 2, 2, 1, 2, 2]
    for step in range(run.steps):
        total = torch.stack([weight for _, weight in run.plan.active(step).values()]).sum(dim=0)
        torch.testing.assert_close(total, torch.ones(16, 16))


def test_a_window_beyond_the_end_is_refused() -> None:
    with pytest.raises(BadInput, match=r"regions\.0\.start_at_step: 6 is not allowed; allowed: at most 5"):
        run_of(job({"mask": LEFT, "start_at_step": 6}))
    with pytest.raises(BadJob, match=r"regions\.0\.end_at_step: 2 is not allowed; allowed: more than start_at_step"):
        job({"mask": LEFT, "start_at_step": 3, "end_at_step": 2})


def test_later_regions_lie_over_earlier_ones() -> None:
    """With `overlap: order` a cell shows the last region that covers it, and the base none under full cover."""
    whole = {"x": 0, "y": 0, "width": 1, "height": 1}
    run = run_of(job({"mask": whole, "prompt": "under"}, {"mask": LEFT, "prompt": "over"}, cfg=1.0, overlap="order"))
    state, _ = walked(run, PromptColors())[-1]
    color = {name: float(value) for name, value in colors(run).items()}
    torch.testing.assert_close(state.x[0, 0, :, :8], torch.full((16, 8), color["over"]))
    torch.testing.assert_close(state.x[0, 0, :, 8:], torch.full((16, 8), color["under"]))
    assert 0 not in run.plan.active(run.steps - 1)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "uni_pc"])
def test_what_is_protected_stays(sampler: str) -> None:
    """Those cells are the init image's at the end, and carry the noise of each level on the way."""
    asked = job({"mask": LEFT}, sampler=sampler, denoise=0.6, init_image="x.png", protect=[MIDDLE])
    clean = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    protected = region_masks(resolve(job({"mask": MIDDLE})), {}, 8)[0]
    run = joint(resolve(asked), LEVELS, clean, region_masks(resolve(asked), {}, 8), protected)
    known, states = protected == 1, walked(run, GaussianData())
    for state, _ in states:
        level = run.plan.sigma_schedule[state.step]
        noise = run.plan.inpaint.noise if run.plan.inpaint else torch.zeros(0)
        wanted = level.alpha * clean + level.sigma * noise
        torch.testing.assert_close(state.x[:, :, known], wanted[:, :, known])
    assert torch.equal(states[-1][0].x[:, :, known], clean[:, :, known])
    assert not torch.equal(states[-1][0].x, clean)


def test_comfyui_noise_can_be_chosen() -> None:
    """A stochastic sampler alone then draws what ComfyUI draws: first of all the initial noise once more."""
    run = run_of(job(sampler="euler_ancestral", noise="comfyui", seed=5))
    torch.testing.assert_close(run.plan.noise.fresh(0), initial_noise(5, (1, 4, 16, 16)))
    assert not torch.equal(run_of(job(seed=5)).plan.noise.fresh(0), initial_noise(5, (1, 4, 16, 16)))


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde"])
def test_a_picture_does_not_depend_on_its_company(sampler: str) -> None:
    asked = {"sampler": sampler, "cfg": 1.0, "batch_size": 3}
    together = walked(run_of(job({"mask": LEFT}, batch_index=[0, 1, 2], **asked)), GaussianData())[-1][0].x
    alone = walked(run_of(job({"mask": LEFT}, batch_index=[2], **asked)), GaussianData())[-1][0].x
    torch.testing.assert_close(together[2:], alone)


def test_costs_little_more_than_half_of_the_originals() -> None:
    """20 steps, 2 of the base alone, 4 regions, guidance on; under full cover the base is spared."""
    boxes = [{"x": x, "y": y, "width": 0.45, "height": 0.45} for x in (0, 0.5) for y in (0, 0.5)]
    quarters = [box | {"width": 0.5, "height": 0.5} for box in boxes]
    # RegionalSampler: 2 rows in each pass, one pass for the base and each region in every regional step.
    original = 2 * 2 + 18 * 2 * (1 + 4)
    for masks, most in ((boxes, 0.62), (quarters, 0.52)):
        asked = job(*({"mask": mask} for mask in masks), steps=20, base_only_steps=2)
        assert cost(run_of(asked)).evaluations <= most * original


def test_savings_are_told() -> None:
    spared = job({"mask": LEFT}, {"mask": RIGHT, "cfg": 1.0})
    run = run_of(spared)
    found = savings(run, cost(run))
    assert found == [
        "in 4 of 6 steps the regions cover the canvas: the base is not evaluated",
        "guidance is off (cfg 1), so there are no negative rows: region 2",
    ]
    shared = run_of(job({"mask": LEFT}, {"mask": MIDDLE}))
    assert savings(shared, cost(shared))[0].startswith("8 rows that participants share")


def test_a_region_may_have_a_model_of_its_own() -> None:
    """It answers for its region alone, in a forward of its own, from its own reading of the prompts."""
    run = run_of(job({"mask": LEFT, "prompt": "x", "model": "other"}, {"mask": RIGHT, "prompt": "x"}, cfg=1.0))
    assert run.prompts == (PromptKey("embedded", "base"), PromptKey("other", "x"), PromptKey("embedded", "x"))
    words = {"base": torch.zeros(1, 1, 1), "x": torch.ones(1, 1, 1)}
    networks = {"embedded": PromptColors(), "other": PromptColors()}
    encoded = conditionings(words, "embedded") | conditionings({"x": torch.full((1, 1, 1), 5.0)}, "other")
    *_, (state, count) = iterate(run, run.initial_state(), EvaluationContext(networks, encoded))
    assert (count.evaluations, count.forwards) == (2, 2)
    torch.testing.assert_close(state.x[0, 0, :, :8], torch.full((16, 8), 5.0))
    torch.testing.assert_close(state.x[0, 0, :, 8:], torch.ones(16, 8))
