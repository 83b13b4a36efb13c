"""What is told to the network, and what states are called, is the same on every processor, to the last bit.

Processors of other kinds are stood for by the code that torch has for them; what they cannot run, they leave out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from prefect_regional_diffusion.sampling_core.engine.cache_keys import segment_keys
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.planning.compile import compose
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from prefect_regional_diffusion.sampling_core.schedules import SCHEDULES, TABLES, original_sigmas
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels, beta_levels, flow_levels
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS, DenoisedPrediction, DenoiseRequest, StepContext
from prefect_regional_diffusion.sampling_core.solvers.base import Noise

MODELS: dict[str, ModelLevels] = {"eps": beta_levels("epsilon"), "flow": flow_levels()}
KINDS = [
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"},
]
JOBS: list[dict[str, Any]] = [
    {"sampler": "euler_ancestral", "noise": "comfyui", "scheduler": "exponential"},
    {"sampler": "dpmpp_sde", "batch_size": 2, "batch_index": [1]},
    {"regions": [{"prompt": "a", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}, "feather": 24}], "denoise": 0.6},
    {
        "regions": [
            {
                "prompt": "a",
                "mask": {"center_x": 0.5, "center_y": 0.5, "radius_x": 0.4, "radius_y": 0.3},
                "variation_strength": 0.5,
                "variation_method": "slerp",
                "variation_seed": 3,
            }
        ]
    },
    {
        "composition": "sequential",
        "sampler": "euler",
        "scheduler": "normal",
        "regions": [
            {
                "prompt": "a",
                "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1},
                "feather": 24,
                "variation_strength": 0.5,
                "variation_seed": 3,
            }
        ],
        "node": {"name": "RegionalSamplerAdvanced"},
    },
]


class _Zeros(Noise):
    def fresh(self, step: int, stage: int = 0, skipped: int = 0) -> torch.Tensor:
        return torch.zeros(1, 1, 1, 1)

    def brownian_increment(self, sigma: float, sigma_next: float) -> torch.Tensor:
        return torch.zeros(1, 1, 1, 1)


def asked(sampler: str, levels: ModelLevels, sigmas: tuple[float, ...]) -> list[tuple[float, float]]:
    """Sigma and timestep of each question that a solver has on its way down."""
    solver, x = SOLVERS[sampler], torch.zeros(1, 1, 1, 1)
    state, found = solver.init(x), list[tuple[float, float]]()
    sigma_schedule = tuple(levels.level(sigma) for sigma in sigmas)
    for number in range(len(sigma_schedule) - 1):
        step = solver.step(x, state, StepContext(sigma_schedule, number, levels, _Zeros()))
        try:
            query: DenoiseRequest = next(step)
            while True:
                found.append((query.level.sigma, levels.timestep_of(query.level.sigma)))
                query = step.send(DenoisedPrediction(x, x))
        except StopIteration as stop:
            x, state = stop.value
    return found


def state_names(fields: dict[str, Any]) -> list[str]:
    job: RenderJob = parse_job({"prompt": "p", "width": 64, "height": 64, "steps": 4} | fields)
    run = compose(
        resolve(job), {"embedded": MODELS["eps"]}, torch.zeros(job.pictures, 4, 8, 8), region_masks(resolve(job), {}, 8)
    )
    return [segment.name for segment in segment_keys(run.segments(), "test", {})]


@cache
def facts() -> dict[str, Any]:
    """What must not depend on the processor."""
    sigmas = {
        f"{model} {schedule} {steps}": original_sigmas(levels, "euler", schedule, steps)
        for model, levels in MODELS.items()
        for schedule in SCHEDULES
        if model == "eps" or schedule not in TABLES
        for steps in (2, 3, 7, 19, 20, 55)
    }
    # With these numbers of steps, `normal` has levels exactly between two timesteps.
    questions = {
        f"{model} {sampler} {steps}": asked(sampler, levels, original_sigmas(levels, sampler, "normal", steps))
        for model, levels in MODELS.items()
        for sampler in SOLVERS
        if sampler not in {"dpm_fast", "dpm_adaptive"}
        for steps in (6, 7, 19)
    }
    return {"sigmas": sigmas, "questions": questions, "names": [state_names(job) for job in JOBS]}


def of(module: str, *arguments: str, kind: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A module as a process on a processor of that kind."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | kind,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["ATEN_CPU_CAPABILITY"])
def test_all_processors_have_the_same(kind: dict[str, str]) -> None:
    done = of("tests.test_processors", kind=kind)
    assert done.returncode == 0, done.stderr
    here, there = json.loads(json.dumps(facts())), json.loads(done.stdout)
    for what, own in here.items():
        different = [name for name in own if own[name] != there[what][name]] if isinstance(own, dict) else []
        assert not different, f"{what}: {different[:5]}"
        assert own == there[what], what


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["ATEN_CPU_CAPABILITY"])
def test_the_recordings_hold_on_other_processors(kind: dict[str, str]) -> None:
    """The groups without a network; `python -m tests.conformance` has all of them."""
    done = of("tests.conformance", *(f"--group={name}" for name in ("sigmas", "erosion", "noise")), kind=kind)
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    print(json.dumps(facts()))
