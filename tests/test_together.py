"""Several runs in the same forwards: each ends where it ends alone, and equal runs are one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from benchmarks.whole_model import embedded_model
from prefect_regional_diffusion.sampling_core.engine.batched_runs import Member, advance_together, iterate
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext
from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from tests.problems import GaussianData, PromptColors, conditionings
from tests.test_joint import LEFT, MIDDLE, job, run_of
from tests.test_sequential import sequential_run_of

WORDS = conditionings(
    {name: torch.full((1, 1, 1), float(i)) for i, name in enumerate(["", "base", "region 0", "region 1"])}, "embedded"
)


def alone(run: SamplingRun[Any], context: EvaluationContext) -> list[Any]:
    """Every state of a run, drawn by itself."""
    return [run.initial_state(), *(state for state, _ in iterate(run, run.initial_state(), context))]


def together(runs: Sequence[SamplingRun[Any]], context: EvaluationContext) -> list[list[Any]]:
    """Every state of each run, all of them advancing until the last is done."""
    reached = [[run.initial_state()] for run in runs]
    while going := [i for i, run in enumerate(runs) if run.steps_done(reached[i][-1]) < run.steps]:
        states, _ = advance_together([Member(runs[i], reached[i][-1], f"{i}") for i in going], context)
        for i, state in zip(going, states, strict=True):
            reached[i].append(state)
    return reached


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_ancestral", "dpmpp_2m_sde", "uni_pc"])
def test_each_run_ends_where_it_ends_alone(sampler: str) -> None:
    """Runs of other seeds, lengths, canvases and regions; state after each step, to the last tensor."""
    runs = [
        run_of(job({"mask": LEFT}, sampler=sampler, seed=1)),
        run_of(job({"mask": LEFT, "sampler": "heun"}, {"mask": MIDDLE, "feather": 20}, sampler=sampler, seed=2)),
        run_of(job(sampler=sampler, steps=4, base_only_steps=1)),
        run_of(job({"mask": MIDDLE}, sampler=sampler, width=192)),
    ]
    context = EvaluationContext({"embedded": GaussianData()}, WORDS)
    for run, states in zip(runs, together(runs, context), strict=True):
        for one, two in zip(alone(run, context), states, strict=True):
            for name, tensor in run.to_tensors(one).items():
                torch.testing.assert_close(run.to_tensors(two)[name], tensor, rtol=1e-5, atol=1e-6)


def test_runs_of_the_original_nodes_share_forwards_too() -> None:
    """With each other and with a joint run; each ends where it ends alone, pass by pass."""
    node = {"composition": "sequential", "steps": 4, "width": 128, "height": 128}
    own = {"prompt": "region 0", "mask": LEFT}
    asked = [
        {"prompt": "base", "regions": [own], "sampler": "dpmpp_2m_sde", "node": {"name": "RegionalSampler"}},
        {"prompt": "base", "regions": [own], "sampler": "heun", "node": {"name": "TwoSamplersForMask"}},
        {"prompt": "base", "sampler": "uni_pc", "node": {"name": "MaskGridNKSamplersAdvanced", "columns": 2}},
    ]
    nodes = [sequential_run_of(parse_job(node | fields)) for fields in asked]
    runs: list[SamplingRun[Any]] = [*nodes, run_of(job({"mask": LEFT}, steps=4))]
    context = EvaluationContext({"embedded": GaussianData()}, WORDS)
    for run, states in zip(runs, together(runs, context), strict=True):
        for one, two in zip(alone(run, context), states, strict=True):
            for name, tensor in run.to_tensors(one).items():
                torch.testing.assert_close(run.to_tensors(two)[name], tensor, rtol=1e-4, atol=1e-4)
    counts = [next(iterate(run, run.initial_state(), context))[1] for run in runs]
    members = [Member(run, run.initial_state(), f"{i}") for i, run in enumerate(runs)]
    _, count = advance_together(members, context)
    assert count.evaluations == sum(one.evaluations for one in counts)
    assert count.forwards == max(one.forwards for one in counts)


def test_one_forward_for_each_shape() -> None:
    runs = [run_of(job({"mask": LEFT}, seed=i)) for i in range(3)] + [run_of(job(width=192))]
    network = PromptColors()
    members = [Member(run, run.initial_state(), f"{i}") for i, run in enumerate(runs)]
    states, count = advance_together(members, EvaluationContext({"embedded": network}, WORDS))
    assert [rows for rows, _ in network.forwards] == [6, 2]
    assert count == Count(8, 2)
    assert [state.step for state in states] == [1, 1, 1, 1]


def test_runs_in_the_same_state_share_their_rows() -> None:
    """Two prompts from one state: one negative row."""
    one, two = run_of(job(steps=3)), run_of(job(steps=3, prompt="region 1"))
    state = one.initial_state()
    network = PromptColors()
    members = [Member(one, state, "one"), Member(two, state, "two")]
    _, count = advance_together(members, EvaluationContext({"embedded": network}, WORDS))
    assert count == Count(3, 1, shared=1)


def test_a_real_network_answers_alike_in_any_company() -> None:
    model = embedded_model()
    asked: list[dict[str, Any]] = [
        {"seed": i, "prompt": f"a {color} background"} for i, color in enumerate(("red", "blue"))
    ]
    runs = [run_of(job({"mask": LEFT, "prompt": "a green plain circle on a red background"}, **own)) for own in asked]
    told = {key: model.text_encoder.encode(key.prompt) for run in runs for key in run.prompts}
    context = EvaluationContext({"embedded": model.denoiser}, told)
    for run, states in zip(runs, together(runs, context), strict=True):
        last = alone(run, context)[-1]
        difference = (last.x - states[-1].x).abs().max() / last.x.abs().max()
        assert float(difference) < 1e-5
