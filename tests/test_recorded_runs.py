"""The loop with one participant over the whole canvas gives what ComfyUI gives, from the same seed and levels.

On the schedules that ComfyUI walks; jobs with joint composition drop no level for any sampler (docs/joint.md).
"""

from __future__ import annotations

import pytest
import torch

from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance
from prefect_regional_diffusion.sampling_core.engine.joint_run import Participant, Plan, PlanPhase
from prefect_regional_diffusion.sampling_core.noise.initial import add_noise, initial_noise
from prefect_regional_diffusion.sampling_core.noise.step_noise import ComfyNoise, span
from prefect_regional_diffusion.sampling_core.schedules import sigma_schedule
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS, solver_named
from prefect_regional_diffusion.sampling_core.solvers.dpm_solver import DPMAdaptive, DPMFast
from tests.conformance import GOLDENS
from tests.conformers.passes import LEVELS, networks
from tests.problems import finish
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


@pytest.mark.parametrize("case", list(filter(_plain, RECORDINGS.cases)), ids=lambda case: case["id"])
def test_full_run(case: Case) -> None:
    sampler, params = case["sampler"], case["params"]
    name, levels = sampler["sampler_name"], LEVELS[sampler["model"]]
    drop = name in PENULTIMATE_DROPPED
    sigma_levels = sigma_schedule(levels, sampler["scheduler"], params["steps"], drop_penultimate=drop)
    solver = solver_named(name)
    clean = RECORDINGS.latent(case["latent"]) * SCALING
    batch, channels, rows, columns = clean.shape
    shape = (batch, channels, rows, columns)
    everywhere = torch.ones(rows, columns)
    guidance = ClassifierFreeGuidance(sampler["cfg"], sampler["positive"], sampler["negative"])
    base = Participant("base", guidance, solver)
    noise = ComfyNoise(shape, params["noise_seed"], solver.draws, *span(sigma_levels))
    x = add_noise(clean, initial_noise(params["noise_seed"], shape), sigma_levels[0], levels)
    plan = Plan(sigma_levels, (PlanPhase(0, (everywhere,)),), (base,), levels, noise)
    reached = finish(plan, x, networks(GOLDENS)[sampler["model"]], RECORDINGS.conditionings)
    # ComfyUI divides UniPC's flow latents by 1 - 0.001, where they end.
    ends = 0.999 if name.startswith("uni_pc") and sampler["model"] == "flow" else 1.0
    error = (reached.x / SCALING / ends - RECORDINGS.expected(case)).abs().max()
    assert float(error) <= tolerance(case)
