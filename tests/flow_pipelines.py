"""diffusers' own pipelines of flow models on a folder, with our noise, and sigmas as ComfyUI has them."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# diffusers annotates its classes with the types of their defaults: `tuple[int]` for any number of them, and the like.

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from prefect_regional_diffusion.sampling_core.noise.initial import initial_noise
from tests.reference_pipelines import Adapt, Picture


class GivenSigmas(FlowMatchEulerDiscreteScheduler):
    """Euler's method over sigmas that are given, and not shifted once more."""

    def given(self, sigmas: list[float]) -> GivenSigmas:
        self.walked = torch.tensor(sigmas, dtype=torch.float32)
        return self

    def set_timesteps(  # pyright: ignore[reportIncompatibleMethodOverride] - pipelines give it no others
        self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None
    ) -> None:
        self.sigmas = self.walked
        self.timesteps = self.walked[:-1] * 1000
        self.num_inference_steps = len(self.timesteps)
        self._step_index = self._begin_index = None


def simple(steps: int, shift: float, entries: int) -> list[float]:
    """ComfyUI's schedule of that name over a table of so many levels, shifted; in double precision."""
    shares = [(entries - int(step * entries / steps)) / entries for step in range(steps)]
    return [shift * t / (1 + (shift - 1) * t) for t in shares] + [0.0]


def flux_shift(width: int, height: int) -> float:
    """ModelSamplingFlux' for a canvas, with the numbers of FLUX.1 dev."""
    slope = (1.15 - 0.5) / (4096 - 256)
    return math.exp(width * height / (8 * 8 * 2 * 2) * slope + 0.5 - slope * 256)


def with_flow_pipeline(
    job: dict[str, Any], sigmas: list[float], adapt: Adapt = lambda pipeline: {}, **arguments: Any
) -> Picture:
    """The picture [height, width, 3] of a job's fields. `arguments` are those that only this pipeline has."""
    folder = Path(job["model"])
    index = diffusers.DiffusionPipeline.load_config(folder, local_files_only=True)
    absent = {name: None for name, kind in index.items() if kind == [None, None]}
    pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(folder, local_files_only=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = GivenSigmas.from_config(pipeline.scheduler.config).given(sigmas)
    noise = initial_noise(job["seed"], (1, 16, job["height"] // 8, job["width"] // 8))
    if hasattr(pipeline, "_pack_latents"):
        noise = pipeline._pack_latents(noise, *noise.shape)
    arguments |= adapt(pipeline)
    with torch.inference_mode():
        images = pipeline(
            job["prompt"],
            width=job["width"],
            height=job["height"],
            num_inference_steps=len(sigmas) - 1,
            latents=noise,
            output_type="np",
            **arguments,
        ).images
    return (images[0] * 255).round().astype(np.uint8)
