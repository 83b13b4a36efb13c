"""Several runs in the same forwards: each ends where it ends alone, and equal runs are one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.whole_model import embedded_model
from prefect_regional_diffusion.sampling_core.engine.batching import Count, Networks
from prefect_regional_diffusion.sampling_core.engine.joint_run import State, advance, advance_all
from prefect_regional_diffusion.sampling_core.engine.sampling_run import Joint
from tests.problems import GaussianData, PromptColors, conditionings
from tests.test_joint import LEFT, MIDDLE, job, run_of

WORDS = conditionings(
    {name: torch.full((1, 1, 1), float(i)) for i, name in enumerate(["", "base", "region 0", "region 1"])}, "embedded"
)


def alone(run: Joint, using: Networks) -> list[State]:
    """Every state of a run, drawn by itself."""
    return [run.begin(), *(state for state, _ in run.iterate(run.begin(), using))]


def together(runs: list[Joint], using: Networks) -> list[list[State]]:
    """Every state of each run, all of them advancing until the last is done."""
    reached = [[run.begin()] for run in runs]
    while going := [i for i, run in enumerate(runs) if reached[i][-1].step < run.steps]:
        states, _ = advance_all([(runs[i].plan, reached[i][-1]) for i in going], using)
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
    using = Networks({"embedded": GaussianData()}, WORDS)
    for run, states in zip(runs, together(runs, using), strict=True):
        for one, two in zip(alone(run, using), states, strict=True):
            for name, tensor in run.to_tensors(one).items():
                torch.testing.assert_close(run.to_tensors(two)[name], tensor, rtol=1e-5, atol=1e-6)


def test_one_forward_for_each_shape() -> None:
    runs = [run_of(job({"mask": LEFT}, seed=i)) for i in range(3)] + [run_of(job(width=192))]
    network = PromptColors()
    states, count = advance_all([(run.plan, run.begin()) for run in runs], Networks({"embedded": network}, WORDS))
    assert [rows for rows, _ in network.forwards] == [6, 2]
    assert count == Count(8, 2)
    assert [state.step for state in states] == [1, 1, 1, 1]


def test_runs_in_the_same_state_share_their_rows() -> None:
    """Two prompts from one state: one negative row."""
    one, two = run_of(job(steps=3)), run_of(job(steps=3, prompt="region 1"))
    state = one.begin()
    network = PromptColors()
    _, count = advance_all([(one.plan, state), (two.plan, state)], Networks({"embedded": network}, WORDS))
    assert count == Count(3, 1, shared=1)


def test_a_real_network_answers_alike_in_any_company() -> None:
    model = embedded_model()
    asked: list[dict[str, Any]] = [
        {"seed": i, "prompt": f"a {color} background"} for i, color in enumerate(("red", "blue"))
    ]
    runs = [run_of(job({"mask": LEFT, "prompt": "a green plain circle on a red background"}, **own)) for own in asked]
    told = {key: model.text_encoder.encode(key.prompt) for run in runs for key in run.prompts}
    using = Networks({"embedded": model.denoiser}, told)
    for run, states in zip(runs, together(runs, using), strict=True):
        state = run.begin()
        while state.step < run.steps:
            state, _ = advance(run.plan, state, using)
        difference = (state.x - states[-1].x).abs().max() / state.x.abs().max()
        assert float(difference) < 1e-5
