"""Every solver reaches its order on problems with a known solution, and goes on bit-equal from its state."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load, save

from sampling_core.errors import BadInput
from sampling_core.levels import Level
from sampling_core.sampler import advance, iterate, start
from sampling_core.solvers import SOLVERS, solver_named
from sampling_core.solvers.base import Solver
from sampling_core.state import from_tensors, to_tensors
from tests.problems import EMBEDDINGS, GaussianData, finish, single


def _ladder(kind: str, steps: int) -> list[Level]:
    """Even in log sigma, so that halving the step halves it everywhere; ends above zero, where errors are smooth."""
    high, low = (10.0, 0.1) if kind == "diffusion" else (0.95, 0.05)
    sigmas = [high * (low / high) ** (i / steps) for i in range(steps + 1)]
    return [Level(1.0 if kind == "diffusion" else 1.0 - s, s) for s in sigmas]


def _error(name: str, kind: str, steps: int) -> float:
    problem, ladder = GaussianData(), _ladder(kind, steps)
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(1, 1, 3, 4) * ladder[0].sigma
    reached = finish(single(name, ladder, x), x, problem).x
    return float((reached - problem.solution(x, ladder[0], ladder[-1])).abs().max())


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_convergence(name: str, kind: str) -> None:
    coarse, fine = _error(name, kind, 64), _error(name, kind, 128)
    order = math.log2(coarse / fine)
    assert order == pytest.approx(SOLVERS[name].order, abs=0.25)


@pytest.mark.parametrize("name", SOLVERS)
def test_ends_without_noise(name: str) -> None:
    """A denoiser that always answers the same latent ends exactly there."""
    ladder = [*_ladder("diffusion", 10), Level(1.0, 0.0)]
    answer = torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    x = 10 * torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(1))
    reached = finish(single(name, ladder, x), x, lambda x, levels, embeddings: answer)
    torch.testing.assert_close(reached.x, answer, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_resumes_bit_equal(name: str, stop: int) -> None:
    """Through safetensors bytes and back, at any step, the run ends with the same bits."""
    x = torch.randn(1, 4, 3, 4, generator=torch.Generator().manual_seed(0)) * 10
    plan, problem = single(name, _ladder("diffusion", 7), x), GaussianData()
    state = start(plan, x)
    for reached, _ in iterate(plan, state, problem, EMBEDDINGS, until=stop):
        state = reached
    resumed = from_tensors(plan, load(save(to_tensors(state))))
    for reached, _ in iterate(plan, resumed, problem, EMBEDDINGS):
        resumed = reached
    assert resumed.step == plan.steps
    assert torch.equal(resumed.x, finish(plan, x, problem).x)


@pytest.mark.parametrize("name", SOLVERS)
def test_keeps_nothing_between_runs(name: str) -> None:
    """Solvers are shared by all regions and runs: one run must not leave anything for the next."""
    x = torch.ones(1, 1, 2, 2)
    plan, problem = single(name, _ladder("flow", 5), x), GaussianData()
    assert torch.equal(finish(plan, x, problem).x, finish(plan, x, problem).x)


def test_multistep_memory_is_used() -> None:
    """DPM++ 2M without its history is Euler; with it, the second step differs."""
    x = torch.ones(1, 1, 2, 2)
    plan, problem = single("dpmpp_2m", _ladder("diffusion", 4), x), GaussianData()
    first, _ = advance(plan, start(plan, x), problem, EMBEDDINGS)
    forgetful = start(plan, first.x)._replace(step=1)
    assert not torch.equal(
        advance(plan, first, problem, EMBEDDINGS)[0].x, advance(plan, forgetful, problem, EMBEDDINGS)[0].x
    )


def test_unknown_name() -> None:
    with pytest.raises(BadInput, match=r"sampler: 'dpm_9'.*euler, heun"):
        solver_named("dpm_9")


def test_registry_is_what_the_job_allows() -> None:
    from typing import get_args

    from sampling_core.job import SamplerName

    assert set(get_args(SamplerName)) == set(SOLVERS)
    solvers: list[Solver[tuple[object, ...]]] = list(SOLVERS.values())
    assert all(solver.order >= 1 for solver in solvers)
