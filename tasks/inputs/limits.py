"""How large a job may be on this machine. The settings are the limits; a job's own fields have wider ones.

Everything that can be is counted from the job's fields alone, before anything is read or drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect_regional_diffusion.sampling_core.comfyui.masks import PIXELS_PER_CELL
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.comfyui_node import TwoSamplersForMask, tiles_of
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.planning.job_size import (
    CHANNELS,
    drawn_pixels,
    finished_bytes,
    tensor_bytes,
)
from prefect_regional_diffusion.tasks.machine.settings import settings

_DRAWN = "pixels of its different masks, each of the whole canvas, REGIONAL_MAX_DRAWN_PIXELS"
_TENSORS = "bytes of masks, weights and latents, REGIONAL_MAX_TENSOR_BYTES"
_ROWS = "evaluations (network rows), REGIONAL_MAX_EVALUATIONS"


def check_limits(job: RenderJob) -> None:
    """Raise BadInput for a job that asks for more than the settings allow; nothing is read for this."""
    limits = settings()
    _at_most("job", len(job.model_dump_json().encode()), limits.max_job_bytes, "bytes as JSON, REGIONAL_MAX_JOB_BYTES")
    canvas = job.width * job.height
    _at_most("width x height", canvas, limits.max_canvas_pixels, "pixels, REGIONAL_MAX_CANVAS_PIXELS")
    _at_most("steps", job.steps, limits.max_steps, "REGIONAL_MAX_STEPS")
    if isinstance(job.node, TwoSamplersForMask) and job.node.mask_steps is not None:
        _at_most("node.mask_steps", job.node.mask_steps, limits.max_steps, "REGIONAL_MAX_STEPS")
    _at_most("regions", len(job.regions), limits.max_regions, "regions, REGIONAL_MAX_REGIONS")
    _at_most("batch_size", job.pictures, limits.max_pictures, "pictures, REGIONAL_MAX_PICTURES")
    check_cells("node.rows x columns", *tiles_of(job.node))
    _at_most("regions", len(job.models), limits.max_models, "models, the job's included, REGIONAL_MAX_MODELS")
    for field, prompt in _prompts(job).items():
        _at_most(f"length of {field}", len(prompt), limits.max_prompt, "characters, REGIONAL_MAX_PROMPT")
    check_drawn(job, {})
    _at_most("job", tensor_bytes([job]), limits.max_tensor_bytes, _TENSORS)
    _at_most(
        "job", finished_bytes(job), limits.max_tensor_bytes, "bytes of finished pictures, REGIONAL_MAX_TENSOR_BYTES"
    )


def check_latents(job: RenderJob, cell: int, channels: int) -> None:
    """Raise BadInput for a model with latents too large for the job: `cell` pixels a latent cell, so many channels.

    Until the model is known, those of Stable Diffusion are counted.
    """
    larger = max(1, PIXELS_PER_CELL / cell) ** 2 * max(1, channels / CHANNELS)
    _at_most("model", int(tensor_bytes([job]) * larger), settings().max_tensor_bytes, _TENSORS)


def check_drawn(job: RenderJob, image_pixels: Mapping[str, int]) -> None:
    """Raise BadInput for a job whose masks are too many pixels. `image_pixels` are the sizes of its images by path."""
    _at_most("job", sum(drawn_pixels(job, image_pixels).values()), settings().max_drawn_pixels, _DRAWN)


def check_jobs(jobs: Sequence[NamedJob]) -> None:
    """Raise BadInput for jobs of a grid, a batch or a shard that are too many, or whose masks are, drawn together."""
    check_count("jobs", len(jobs))
    masks: dict[str, int] = {}
    for named in jobs:
        masks |= drawn_pixels(named.job, {})
    _at_most("jobs", sum(masks.values()), settings().max_drawn_pixels, _DRAWN)


def check_count(field: str, jobs: int) -> None:
    """Raise BadInput for too many jobs."""
    _at_most(field, jobs, settings().max_jobs, "jobs, REGIONAL_MAX_JOBS")


def check_shard(jobs: Sequence[NamedJob]) -> None:
    """Raise BadInput for jobs that would take too much memory in one process."""
    limit = settings().max_tensor_bytes
    _at_most("jobs", tensor_bytes(named.job for named in jobs), limit, f"{_TENSORS}, of the jobs of one shard")


def check_cells(field: str, rows: int, columns: int) -> None:
    """Raise BadInput for a grid of more cells than the settings allow."""
    _at_most(field, rows * columns, settings().max_cells, "cells, REGIONAL_MAX_CELLS")


def check_evaluations(field: str, evaluations: int) -> None:
    """Raise BadInput for a job, or jobs together, with too many network rows."""
    _at_most(field, evaluations, settings().max_evaluations, _ROWS)


def _prompts(job: RenderJob) -> dict[str, str]:
    prompts = {"prompt": job.prompt, "negative_prompt": job.negative_prompt}
    for i, region in enumerate(job.regions):
        prompts |= {f"regions.{i}.prompt": region.prompt, f"regions.{i}.negative_prompt": region.negative_prompt or ""}
    return prompts


def _at_most(field: str, value: int, limit: int, of: str) -> None:
    if value > limit:
        raise BadInput(field, value, f"at most {limit} ({of})")
