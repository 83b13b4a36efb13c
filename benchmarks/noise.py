"""How true the noise is, joint against sequential: `python -m benchmarks.noise [--json FILE]`.

With a denoiser that knows the answer (zero), all of a latent is noise. After every step its level at each
latent cell, from 1024 channels, is compared with the schedule's; printed are the lowest and the highest ratio,
and the share of cells that are more than a tenth off. `left` is what remains at the end, in units of the latent.
Sequential is RegionalSampler with its defaults.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import SequentialSamplingRun
from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import EvaluationContext
from prefect_regional_diffusion.sampling_core.engine.joint_sampling_run import JointSamplingRun
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.noise.initial import initial_noise
from prefect_regional_diffusion.sampling_core.planning.compile import compose
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, beta_levels
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Rows

CHANNELS = 1024
LEVELS = beta_levels("epsilon")
SOFT = {"prompt": "a", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}, "feather": 32}
ROUND = {"prompt": "b", "mask": {"center_x": 0.5, "center_y": 0.5, "radius_x": 0.4, "radius_y": 0.3}, "feather": 24}
SMALL = {"prompt": "c", "mask": {"x": 0.4, "y": 0.4, "width": 0.25, "height": 0.2}}
WHOLE = {"prompt": "d", "mask": {"x": 0, "y": 0, "width": 1, "height": 1}}
LAYOUTS = {"soft": [SOFT], "overlapping": [SOFT, ROUND], "nested": [ROUND, SMALL], "full cover": [WHOLE, ROUND]}
SAMPLERS = ("euler", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde")


class _KnowsTheAnswer:
    def __call__(
        self, x: Rows, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Rows:
        return torch.zeros_like(x)


def measure(composition: str, layout: str, sampler: str) -> dict[str, float]:
    """The figures of one run of 8 steps, 2 of them of the base alone."""
    fields = {"prompt": "base", "steps": 8, "base_only_steps": 2, "cfg": 1.0, "sampler": sampler}
    job = resolve(parse_job(fields | {"scheduler": "normal", "composition": composition, "regions": LAYOUTS[layout]}))
    run = compose(job, {job.base.model: LEVELS}, torch.zeros(1, CHANNELS, 16, 16), region_masks(job, {}, 8))
    context = EvaluationContext({job.base.model: _KnowsTheAnswer()}, dict.fromkeys(run.prompts, Conditioning({})))
    ratios: list[torch.Tensor] = []
    residual = torch.zeros(16, 16)
    # Samplers that draw no noise keep the initial one, so its own chance is taken out of their figures.
    initial_deviation = (
        _standard_deviations(initial_noise(job.seed, (1, CHANNELS, 16, 16))) if SOLVERS[sampler].order > 0 else 1.0
    )
    for state, _ in iterate(run, run.initial_state(), context):
        sigma = _level_after(run, state)
        if sigma is None:
            continue
        residual = _standard_deviations(run.final_latents(state))
        if sigma > 0:
            ratios.append(residual / sigma / initial_deviation)
    every = torch.stack(ratios)
    return {
        "lowest": float(every.min()),
        "highest": float(every.max()),
        "off": float(((every - 1).abs() > 0.1).float().mean()),
        "left": float(residual.square().mean().sqrt()),
    }


def _level_after(run: Any, state: Any) -> float | None:
    """The schedule's sigma where a step is done by all; None within one."""
    if isinstance(run, JointSamplingRun):
        return run.plan.sigma_schedule[state.step].sigma
    assert isinstance(run, SequentialSamplingRun)
    if state.inside is not None:
        return None
    last = run.passes[state.number - 1]
    after = run.passes[state.number] if state.number < len(run.passes) else None
    if after is not None and after.call.start == last.call.start:
        return None
    return last.sigmas[-1]


def _standard_deviations(noise: Latent) -> torch.Tensor:
    return noise[0].square().mean(dim=0).sqrt()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(arguments)
    figures: dict[str, dict[str, float]] = {}
    for sampler in SAMPLERS:
        for layout in LAYOUTS:
            for composition in ("joint", "sequential"):
                case = measure(composition, layout, sampler)
                figures[f"{sampler}, {layout}, {composition}"] = case
                print(
                    f"{sampler:16} {layout:12} {composition:11} {case['lowest']:6.3f} to {case['highest']:6.3f}"
                    f"  {case['off']:4.0%} off  left {case['left']:.4f}"
                )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
