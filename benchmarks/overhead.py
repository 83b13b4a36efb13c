"""What a pass of the original nodes costs outside the network: `python -m benchmarks.overhead [--json FILE]`.

RegionalSampler with two regions, timed with a network that is a wrapper around the real one and keeps its
own time. One thread, so that time is processor time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from benchmarks.networks import Timed, large_unet
from prefect_regional_diffusion.sampling_core.comfyui.ksampler import SamplerConfig
from prefect_regional_diffusion.sampling_core.comfyui.node_passes import passes_of
from prefect_regional_diffusion.sampling_core.comfyui.regional_sampler import RegionalPrompt, regional_sampler
from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import SequentialSamplingRun
from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext
from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance, PromptKey
from prefect_regional_diffusion.sampling_core.job.comfyui_node import DEFAULT_NODE
from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS, Conditioning
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import beta_levels

LEVELS = beta_levels("epsilon")
GOLDEN = Path(__file__).parent.parent / "tests" / "goldens" / "models" / "eps"


def measure(unet: UNet2DConditionModel, cells: int, steps: int) -> dict[str, Any]:
    """Seconds inside and outside the network for RegionalSampler with two regions, and its rows and forwards."""
    network = Timed(UNetDenoiser(unet.eval(), LEVELS))
    prompts = [PromptKey("", name) for name in ("base", "a", "b", "negative")]
    context = EvaluationContext(
        {"": network}, {key: Conditioning({PROMPT_EMBEDS: torch.randn(1, 8, 32)}) for key in prompts}
    )
    base, a, b = (
        SamplerConfig("euler", "normal", ClassifierFreeGuidance(4.0, prompt, "negative"))
        for prompt in ("base", "a", "b")
    )
    pixels = cells * 8
    left, right = torch.zeros(pixels, pixels), torch.zeros(pixels, pixels)
    left[:, : pixels // 3], right[:, -pixels // 3 :] = 1, 1
    regions = [RegionalPrompt(a, left), RegionalPrompt(b, right)]
    latent: Tensor = torch.zeros(1, 4, cells, cells)
    calls = regional_sampler(DEFAULT_NODE, base, regions, (1, 4, cells, cells), seed=1, steps=steps)

    def run() -> Count:
        # Planning counts: it is part of every run.
        sequence = SequentialSamplingRun(tuple(passes_of(calls, {"": LEVELS})), latent)
        total = Count()
        for _, count in iterate(sequence, sequence.initial_state(), context):
            total = total.plus(count)
        return total

    run()
    network.seconds = 0.0
    start = time.perf_counter()
    total = run()
    total_seconds = time.perf_counter() - start
    outside_seconds = total_seconds - network.seconds
    return {
        "parameters": sum(p.numel() for p in unet.parameters()),
        "forwards": total.forwards,
        "rows": total.evaluations,
        "passes": len(calls),
        "outside_ms_per_pass": round(1000 * outside_seconds / len(calls), 3),
        "outside_over_inside": round(outside_seconds / network.seconds, 5),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    golden = UNet2DConditionModel.from_pretrained(GOLDEN)
    figures = {"golden network": measure(golden, 16, 20), "large network": measure(large_unet(), 32, 6)}
    for name, measurement in figures.items():
        print(f"{name}: {measurement}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
