"""diffusers' own pipelines on a model folder, with our noise and our sigmas: what a job without regions must equal."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# diffusers annotates its classes with the types of their defaults: `tuple[int]` for any number of them, and the like.

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from numpy.typing import NDArray

from prefect_regional_diffusion.sampling_core.models.family import Canvas
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.noise.initial import initial_noise
from prefect_regional_diffusion.sampling_core.schedules import sigma_schedule

Picture = NDArray[np.uint8]


Adapt = Callable[[Any], dict[str, Any]]
"""What is done with a pipeline before it draws; returns arguments that it is called with."""


def with_pipeline(
    job: dict[str, Any],
    kind: str | None = None,
    parts: Mapping[str, Any] | None = None,
    adapt: Adapt = lambda pipeline: {},
    **told: Any,
) -> Picture:
    """The picture [height, width, 3] of a job's fields; samplers `euler` and `dpmpp_2m`, negative prompts as diffusers
    has them: none where the job has none.

    `kind` is another pipeline class than the model's own, with `parts` that a model does not have; `told` is what that
    is given beside what the job says. `adapt` is done last.
    """
    folder = Path(job["model"])
    index: Any = diffusers.DiffusionPipeline.load_config(folder, local_files_only=True)
    optional_parts: dict[str, Any] = {"safety_checker": None} if "safety_checker" in index else {}
    pipeline_class = getattr(diffusers, kind or index["_class_name"])
    pipeline = pipeline_class.from_pretrained(folder, local_files_only=True, **optional_parts, **(parts or {}))
    pipeline.set_progress_bar_config(disable=True)
    checkpoint = open_folder(str(folder))
    levels = checkpoint.noise_schedule(Canvas(job["width"], job["height"]), job["steps"])
    sigmas = [level.sigma for level in sigma_schedule(levels, job["scheduler"], job["steps"])]
    if job["sampler"] == "euler":
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
        schedule = {"sigmas": sigmas}
    else:
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        schedule = {"timesteps": [round(levels.timestep_of(sigma)) for sigma in sigmas[:-1]]}
    cell = checkpoint.facts.vae_scale_factor
    shape = (1, checkpoint.facts.latent_channels, job["height"] // cell, job["width"] // cell)
    adapted_arguments = adapt(pipeline)
    with torch.inference_mode():
        images = pipeline(
            job["prompt"],
            negative_prompt=job.get("negative_prompt"),
            width=job["width"],
            height=job["height"],
            guidance_scale=job["cfg"],
            latents=initial_noise(job["seed"], shape),
            output_type="np",
            **schedule,
            **told,
            **adapted_arguments,
        ).images
    return (images[0] * 255).round().astype(np.uint8)


def share_alike(one: Picture, other: Picture) -> float:
    """Of all values, those that differ by at most 2 of 255."""
    return float((np.abs(one.astype(int) - other.astype(int)) <= 2).mean())
