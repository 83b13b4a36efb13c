"""Every solver reaches its order on problems with a known solution, and goes on bit-equal from its state."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.joint_run import start
from prefect_regional_diffusion.sampling_core.engine.joint_state import from_tensors, to_tensors
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.names import SamplerName
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS, DenoisedPrediction, StepContext, solver_named
from prefect_regional_diffusion.sampling_core.solvers.dpm_solver import DPMAdaptive, DPMFast
from tests.problems import GaussianData, finish, run_of_plan, single, using


def _ladder(kind: str, steps: int) -> list[Level]:
    """Even in log sigma, so that halving the step halves it everywhere; ends above zero, where errors are smooth."""
    high, low = (10.0, 0.1) if kind == "diffusion" else (0.95, 0.05)
    sigmas = [high * (low / high) ** (i / steps) for i in range(steps + 1)]
    return [Level(1.0 if kind == "diffusion" else 1.0 - s, s) for s in sigmas]


def _error(name: str, kind: str, steps: int) -> float:
    problem, sigma_schedule = GaussianData(), _ladder(kind, steps)
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(1, 1, 3, 4) * sigma_schedule[0].sigma
    reached = finish(single(name, sigma_schedule, x), x, problem).x
    return float((reached - problem.solution(x, sigma_schedule[0], sigma_schedule[-1])).abs().max())


STEPPING = [name for name, solver in SOLVERS.items() if not isinstance(solver, DPMFast | DPMAdaptive)]
"""Methods that step where they are told."""
DETERMINISTIC = [name for name in STEPPING if SOLVERS[name].order > 0]


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence(name: str, kind: str) -> None:
    """At least the stated order: one first step of lower order can be small enough not to be seen.

    UniPC shows its order where steps are smaller.
    """
    steps = 128 if name.startswith("uni_pc") else 64
    coarse, fine = _error(name, kind, steps), _error(name, kind, 2 * steps)
    assert math.log2(coarse / fine) >= SOLVERS[name].order - 0.25


def _own_steps(solver: DPMFast | DPMAdaptive, kind: str, steps: int) -> tuple[float, int]:
    """Error and evaluations of a method that goes down the schedule by steps of its own."""
    problem, sigma_schedule = GaussianData(), _ladder(kind, steps)
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(1, 1, 3, 4) * sigma_schedule[0].sigma
    plan = single("euler", sigma_schedule, x)
    step = solver.step(x, solver.init(x), StepContext(plan.sigma_schedule, 0, plan.levels, plan.noise))
    query, evaluations = next(step), 0
    while True:
        evaluations += 1
        answer = problem(query.x, [query.level] * len(query.x), Conditioning({}))
        try:
            query = step.send(DenoisedPrediction(answer))
        except StopIteration as stop:
            reached = stop.value[0]
            return float(
                (reached - problem.solution(x, sigma_schedule[0], sigma_schedule[-1])).abs().max()
            ), evaluations


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_order_of_dpm_fast(kind: str) -> None:
    """In runs of 3 k + 2 steps: with a step less or more, a last step of order 1 limits the whole."""
    (coarse, few), (fine, many) = _own_steps(DPMFast(), kind, 47), _own_steps(DPMFast(), kind, 95)
    assert (few, many) == (47, 95)
    assert math.log2(coarse / fine) >= DPMFast.order - 0.25


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_order_of_dpm_adaptive(kind: str) -> None:
    """With a tighter tolerance, the error falls as the third power of the evaluations or faster."""

    class Tight(DPMAdaptive):
        absolute, relative = DPMAdaptive.absolute / 64, DPMAdaptive.relative / 64

    class Tighter(DPMAdaptive):
        absolute, relative = DPMAdaptive.absolute / 4096, DPMAdaptive.relative / 4096

    (coarse, few), (fine, many) = _own_steps(Tight(), kind, 10), _own_steps(Tighter(), kind, 10)
    assert many > few
    assert math.log(coarse / fine) / math.log(many / few) >= DPMAdaptive.order - 0.25


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_ends_without_noise(name: str) -> None:
    """A denoiser that always answers the same latent ends exactly there."""
    sigma_schedule = [*_ladder("diffusion", 10), Level(1.0, 0.0)]
    answer = torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    x = 10 * torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(1))
    reached = finish(single(name, sigma_schedule, x), x, lambda x, levels, embeddings: answer.expand_as(x))
    # UniPC works in log sigma and stops at 0.001.
    allowed = 5e-3 if name.startswith("uni_pc") else 1e-5
    torch.testing.assert_close(reached.x, answer, rtol=1e-5, atol=allowed)


@pytest.mark.parametrize("name", STEPPING)
@pytest.mark.parametrize("low", [0.01, 0.011663288809359074, 0.019649405032396317])
def test_one_step_from_high_noise_to_very_little(name: str, low: float) -> None:
    """Linear betas, the default of diffusers, begin at sigma 157: on such a step ancestral methods lose all digits."""
    sigma_schedule = [Level(1.0, 157.4), Level(1.0, low), Level(1.0, 0.0)]
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(1, 1, 3, 4) * sigma_schedule[0].sigma
    assert finish(single(name, sigma_schedule, x), x, GaussianData()).x.isfinite().all()


@pytest.mark.parametrize("name", STEPPING)
@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_resumes_bit_equal(name: str, stop: int) -> None:
    """Through safetensors bytes and back, at any step, the run ends with the same bits."""
    x = torch.randn(1, 4, 3, 4, generator=torch.Generator().manual_seed(0)) * 10
    plan, problem = single(name, _ladder("diffusion", 7), x), GaussianData()
    state = start(plan, x)
    for reached, _ in iterate(run_of_plan(plan, x), state, using(problem), until=stop):
        state = reached
    resumed = from_tensors(plan, x.shape, load(save(to_tensors(plan, state))))
    for reached, _ in iterate(run_of_plan(plan, x), resumed, using(problem)):
        resumed = reached
    assert resumed.step == plan.steps
    assert torch.equal(resumed.x, finish(plan, x, problem).x)


@pytest.mark.parametrize("name", STEPPING)
def test_keeps_nothing_between_runs(name: str) -> None:
    """Solvers are shared by all regions and runs: one run must not leave anything for the next."""
    x = torch.ones(1, 1, 2, 2)
    plan, problem = single(name, _ladder("flow", 5), x), GaussianData()
    assert torch.equal(finish(plan, x, problem).x, finish(plan, x, problem).x)


class _Asked:
    """Noise that remembers what it was asked for."""

    def __init__(self) -> None:
        self.fresh_stages: set[int] = set()
        self.brownian = False

    def fresh(self, step: int, stage: int = 0, skipped: int = 0) -> Tensor:
        self.fresh_stages.add(stage)
        return torch.zeros(1, 1, 3, 4)

    def brownian_increment(self, sigma: float, sigma_next: float) -> Tensor:
        self.brownian = True
        return torch.zeros(1, 1, 3, 4)


@pytest.mark.parametrize("name", STEPPING)
def test_says_what_it_draws(name: str) -> None:
    """Sources count draws by it: a method that draws more than it says gets the same noise twice."""
    solver, noise, x = solver_named(name), _Asked(), torch.ones(1, 1, 3, 4) * 10
    plan = replace(single(name, [*_ladder("diffusion", 6), Level(1.0, 0.0)], x), noise=noise)
    finish(plan, x, GaussianData())
    assert noise.fresh_stages == set(range(solver.draws))
    assert noise.brownian == solver.brownian
    assert (solver.order == 0) == (solver.draws > 0 or solver.brownian)


def test_multistep_memory_is_used() -> None:
    """DPM++ 2M without its history is Euler; with it, the second step differs."""
    x = torch.ones(1, 1, 2, 2)
    plan, problem = single("dpmpp_2m", _ladder("diffusion", 4), x), GaussianData()
    run = run_of_plan(plan, x)
    first, _ = next(iterate(run, start(plan, x), using(problem)))
    forgetful = start(plan, first.x)._replace(step=1)
    second, other = (next(iterate(run, state, using(problem)))[0] for state in (first, forgetful))
    assert not torch.equal(second.x, other.x)


def test_unknown_name() -> None:
    with pytest.raises(BadInput, match=r"sampler: 'dpm_9'.*euler, .*heun"):
        solver_named("dpm_9")


def test_jobs_name_methods_that_there_are() -> None:
    assert set(get_args(SamplerName)) == set(SOLVERS)
