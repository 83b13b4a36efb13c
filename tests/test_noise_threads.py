"""Threads that look at a run while another samples it change nothing: noise is the same whoever else asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import EvaluationContext
from prefect_regional_diffusion.sampling_core.engine.joint_run import State
from prefect_regional_diffusion.sampling_core.engine.joint_sampling_run import JointSamplingRun
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.noise.step_noise import ComfyNoise, CounterBasedNoise
from prefect_regional_diffusion.sampling_core.planning.compile import cost
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers import Noise
from tests.problems import EMBEDDINGS, GaussianData, conditionings
from tests.test_joint import job, run_of

SHAPE = (2, 4, 8, 8)
STEPS = 6
TRIES = 5
COUNTING = 3
RUNS = {
    "comfyui": {"sampler": "euler_ancestral", "noise": "comfyui"},
    "comfyui, three draws a step": {"sampler": "seeds_3", "noise": "comfyui"},
    "brownian": {"sampler": "dpmpp_sde", "noise": "per_step"},
    "brownian, comfyui": {"sampler": "dpmpp_2m_sde", "noise": "comfyui"},
}


class Slow(GaussianData):
    """A network that lets other threads run while it computes, as one on a GPU does."""

    def __call__(
        self, x: Tensor, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Tensor:
        time.sleep(0.03)
        return super().__call__(x, levels, conditioning)


def new_run(kind: str) -> JointSamplingRun:
    return run_of(job(steps=STEPS, width=256, height=256, batch_size=8, **RUNS[kind]))


def sampled(run: JointSamplingRun, state: State, network: GaussianData) -> list[Tensor]:
    """The latent after each step."""
    context = EvaluationContext({"embedded": network}, conditionings(EMBEDDINGS, "embedded"))
    return [reached.x for reached, _ in iterate(run, state, context)]


def while_counted(run: JointSamplingRun, work: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What work returns while other threads count what the run costs, from the same moment on."""
    together = Barrier(COUNTING + 1)

    def count() -> None:
        together.wait()
        cost(run)

    with ThreadPoolExecutor(COUNTING) as pool:
        counting = [pool.submit(count) for _ in range(COUNTING)]
        together.wait()
        found = work()
        for one in counting:
            one.result()
        return found


@pytest.mark.parametrize("resumed", [False, True], ids=["fresh", "resumed"])
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_that_is_counted_while_it_is_sampled(kind: str, *, resumed: bool) -> None:
    wanted = sampled(new_run(kind), new_run(kind).initial_state(), GaussianData())
    for number in range(TRIES):
        run = new_run(kind)
        first = STEPS // 2 if resumed else 0
        state = run.initial_state()
        if resumed:
            # As after a crash: the noise of the steps before was drawn in another process.
            context = EvaluationContext({"embedded": GaussianData()}, conditionings(EMBEDDINGS, "embedded"))
            for before, _ in iterate(new_run(kind), state, context, until=first):
                state = before
        found = while_counted(run, lambda run=run, state=state: sampled(run, state, Slow()))
        print(f"{kind}: try {number + 1} of {TRIES}, {'resumed' if resumed else 'fresh'}")
        for step, (one, other) in enumerate(zip(found, wanted[first:], strict=True), start=first + 1):
            assert torch.equal(one, other), f"try {number + 1}: another latent after step {step}"


SOURCES: dict[str, Callable[[], Noise]] = {
    "comfyui": lambda: ComfyNoise(SHAPE, 7, 2, 0.03, 14.6),
    "per_step": lambda: CounterBasedNoise(SHAPE, 7, (0, 1), 0.03, 14.6),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_sources_may_be_asked_by_many_threads(kind: str) -> None:
    """Each question has one answer, in whatever order and however often it is asked."""
    sigmas = torch.linspace(14.6, 0.03, 41).tolist()
    questions: list[Callable[[Any], Tensor]] = [
        *(lambda noise, step=step, stage=stage: noise.fresh(step, stage) for step in range(40) for stage in range(2)),
        *(lambda noise, i=i: noise.brownian_increment(sigmas[i], sigmas[i + 1]) for i in range(40)),
    ]
    alone = SOURCES[kind]()
    wanted = [question(alone) for question in questions]
    for number in range(TRIES):
        shared, order = SOURCES[kind](), torch.randperm(len(questions)).tolist()
        with ThreadPoolExecutor(8) as pool:
            answers = dict(zip(order, pool.map(lambda i, noise=shared: questions[i](noise), order), strict=True))
        assert all(torch.equal(answers[i], wanted[i]) for i in order), f"try {number + 1}"
