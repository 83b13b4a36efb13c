"""How much memory and how many pixels of masks a job may ask for on this machine, counted from its fields alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect_regional_diffusion.sampling_core.comfyui.masks import PIXELS_PER_CELL
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob, resolve
from prefect_regional_diffusion.sampling_core.planning.job_size import (
    CHANNELS,
    drawn_pixels,
    finished_bytes,
    tensor_bytes,
)
from prefect_regional_diffusion.tasks.inputs.limits import at_most, check_count
from prefect_regional_diffusion.tasks.machine.settings import settings

_DRAWN = "pixels of its different masks, each of the whole canvas, REGIONAL_MAX_DRAWN_PIXELS"
_TENSORS = "bytes of masks, weights and latents, REGIONAL_MAX_TENSOR_BYTES"


def check_latents(job: ResolvedJob, cell: int, channels: int) -> None:
    """Raise BadInput for a model with latents too large for the job: `cell` pixels a latent cell, so many channels.

    Until the model is known, those of Stable Diffusion are counted.
    """
    factor = max(1, PIXELS_PER_CELL / cell) ** 2 * max(1, channels / CHANNELS)
    at_most("model", int(tensor_bytes([job]) * factor), settings().max_tensor_bytes, _TENSORS)


def check_size(job: RenderJob, resolved: ResolvedJob) -> None:
    """Raise BadInput for a job that needs more memory, or draws more pixels of masks, than the settings allow.

    `resolved` is the job with everything inherited filled in.
    """
    limit = settings().max_tensor_bytes
    check_drawn(resolved, {})
    at_most("job", tensor_bytes([resolved]), limit, _TENSORS)
    at_most("job", finished_bytes(job), limit, "bytes of finished pictures, REGIONAL_MAX_TENSOR_BYTES")


def check_drawn(job: ResolvedJob, image_pixels: Mapping[str, int]) -> None:
    """Raise BadInput for a job whose masks are too many pixels. `image_pixels` are the sizes of its images by path."""
    at_most("job", sum(drawn_pixels(job, image_pixels).values()), settings().max_drawn_pixels, _DRAWN)


def check_jobs(jobs: Sequence[NamedJob]) -> None:
    """Raise BadInput for jobs of a grid, a batch or a shard that are too many, or whose masks are, drawn together."""
    check_count("jobs", len(jobs))
    masks: dict[str, int] = {}
    for named_job in jobs:
        masks |= drawn_pixels(resolve(named_job.job), {})
    at_most("jobs", sum(masks.values()), settings().max_drawn_pixels, _DRAWN)


def check_shard(jobs: Sequence[NamedJob]) -> None:
    """Raise BadInput for jobs that would take too much memory in one process."""
    limit = settings().max_tensor_bytes
    at_most(
        "jobs",
        tensor_bytes(resolve(named_job.job) for named_job in jobs),
        limit,
        f"{_TENSORS}, of the jobs of one shard",
    )
