"""The loop with one participant over the whole canvas gives what ComfyUI gives, from the same seed and levels.

On the schedules that ComfyUI walks; jobs with joint composition drop no level for any sampler (docs/joint.md).
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance
from prefect_regional_diffusion.sampling_core.engine.joint_run import Participant, Plan, PlanPhase
from prefect_regional_diffusion.sampling_core.engine.joint_sampling_run import JointSamplingRun
from prefect_regional_diffusion.sampling_core.noise.initial import add_noise, initial_noise
from prefect_regional_diffusion.sampling_core.noise.step_noise import ComfyNoise, span
from prefect_regional_diffusion.sampling_core.schedules import sigma_schedule
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS, solver_named
from prefect_regional_diffusion.sampling_core.solvers.dpm_solver import DPMAdaptive, DPMFast
from tests.conformance import GOLDENS, parts
from tests.conformers.passes import LEVELS, context
from tests.drawn_together import Drawn, drawn_together
from tests.problems import run_of_plan
from tests.recordings import SCALING, Case, Recordings, tolerance

RECORDINGS = Recordings(GOLDENS)
PENULTIMATE_DROPPED = {"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"}
CHOOSE_THEIR_STEPS = {name for name, solver in SOLVERS.items() if isinstance(solver, DPMFast | DPMAdaptive)}


def _plain(case: Case) -> bool:
    """A full run of a method that steps where it is told, without a mask.

    Not UniPC's of one step: ComfyUI only rescales the latent there, where ours takes the step.
    """
    whole = {"start_at_step": 0, "end_at_step": 10000, "add_noise": "enable", "return_with_leftover_noise": "disable"}
    return (
        case["group"] == "ksampler_advanced"
        and case["sampler"]["sampler_name"] not in CHOOSE_THEIR_STEPS
        and isinstance(case["latent"], str)
        and "channels" not in case["notes"]
        and not (case["sampler"]["sampler_name"].startswith("uni_pc") and case["params"]["steps"] == 1)
        and whole.items() <= case["params"].items()
        and case["params"]["denoise"] == 1
    )


PARTS = parts(list(filter(_plain, RECORDINGS.cases)), RECORDINGS)


def _run_of(case: Case) -> JointSamplingRun:
    """One participant on the whole canvas, where the recording has a sampler."""
    sampler, params = case["sampler"], case["params"]
    name, levels = sampler["sampler_name"], LEVELS[sampler["model"]]
    drop = name in PENULTIMATE_DROPPED
    sigma_levels = sigma_schedule(levels, sampler["scheduler"], params["steps"], drop_penultimate=drop)
    solver = solver_named(name)
    clean = RECORDINGS.latent(case["latent"]) * SCALING
    batch, channels, rows, columns = clean.shape
    shape = (batch, channels, rows, columns)
    everywhere = torch.ones(rows, columns)
    model, cfg = sampler["model"], sampler["cfg"]
    guidance = ClassifierFreeGuidance(cfg, sampler["positive"], sampler["negative"], model=model)
    base = Participant("base", guidance, solver)
    noise = ComfyNoise(shape, params["noise_seed"], solver.draws, *span(sigma_levels))
    x = add_noise(clean, initial_noise(params["noise_seed"], shape), sigma_levels[0], levels)
    return run_of_plan(Plan(sigma_levels, (PlanPhase(0, (everywhere,)),), (base,), levels, noise), x)


@cache
def _drawn(part: int) -> dict[str, Drawn | Exception]:
    """What comes of the cases that are drawn together."""
    drawn = drawn_together([_run_of(case) for case in PARTS[part]], context(RECORDINGS))
    return {case["id"]: one for case, one in zip(PARTS[part], drawn, strict=True)}


@pytest.mark.parametrize(
    ("part", "case"),
    [
        pytest.param(number, case, id=case["id"], marks=pytest.mark.xdist_group(f"full runs {number}"))
        for number, part in enumerate(PARTS)
        for case in part
    ],
)
def test_full_run(part: int, case: Case) -> None:
    drawn, sampler = _drawn(part)[case["id"]], case["sampler"]
    assert isinstance(drawn, Drawn), drawn
    # ComfyUI divides UniPC's flow latents by 1 - 0.001, where they end.
    ends = 0.999 if sampler["sampler_name"].startswith("uni_pc") and sampler["model"] == "flow" else 1.0
    error = (drawn.latents / SCALING / ends - RECORDINGS.expected(case)).abs().max()
    assert float(error) <= tolerance(case)
