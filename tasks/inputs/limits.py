"""How large a job may be on this machine. The settings are the limits; a job's own fields have wider ones.

As much as possible is counted from the job's fields alone, before anything is read or drawn.
"""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.comfyui_node import TwoSamplersForMask, tiles_of
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.tasks.machine.settings import settings

_ROWS = "evaluations (network rows), REGIONAL_MAX_EVALUATIONS"


def check_limits(job: RenderJob, resolved: ResolvedJob) -> None:
    """Raise BadInput for a job that asks for more than the settings allow; nothing is read for this.

    `resolved` is the job with everything inherited filled in.
    """
    limits = settings()
    at_most("job", len(job.model_dump_json().encode()), limits.max_job_bytes, "bytes as JSON, REGIONAL_MAX_JOB_BYTES")
    canvas = job.width * job.height
    at_most("width x height", canvas, limits.max_canvas_pixels, "pixels, REGIONAL_MAX_CANVAS_PIXELS")
    at_most("steps", job.steps, limits.max_steps, "REGIONAL_MAX_STEPS")
    if isinstance(job.node, TwoSamplersForMask) and job.node.mask_steps is not None:
        at_most("node.mask_steps", job.node.mask_steps, limits.max_steps, "REGIONAL_MAX_STEPS")
    at_most("regions", len(job.regions), limits.max_regions, "regions, REGIONAL_MAX_REGIONS")
    at_most("batch_size", job.pictures, limits.max_pictures, "pictures, REGIONAL_MAX_PICTURES")
    check_cells("node.rows x columns", *tiles_of(job.node))
    at_most("regions", len(resolved.models), limits.max_models, "models, the job's included, REGIONAL_MAX_MODELS")
    for field, prompt in _prompts(job).items():
        at_most(f"length of {field}", len(prompt), limits.max_prompt, "characters, REGIONAL_MAX_PROMPT")


def check_canvas(job: ResolvedJob, multiple: int, most: int | None) -> None:
    """Raise BadInput for a canvas of a size that the model has no latents for, or of more pixels than `most`."""
    for name, pixels in (("width", job.width), ("height", job.height)):
        if pixels % multiple:
            raise BadInput(name, pixels, f"a multiple of {multiple}, for the model {job.base.model}")
        if most is not None and pixels > most:
            raise BadInput(name, pixels, f"at most {most}, for the model {job.base.model}")


def check_count(field: str, jobs: int) -> None:
    """Raise BadInput for too many jobs."""
    at_most(field, jobs, settings().max_jobs, "jobs, REGIONAL_MAX_JOBS")


def check_cells(field: str, rows: int, columns: int) -> None:
    """Raise BadInput for a grid of more cells than the settings allow."""
    at_most(field, rows * columns, settings().max_cells, "cells, REGIONAL_MAX_CELLS")


def check_evaluations(field: str, evaluations: int) -> None:
    """Raise BadInput for a job, or jobs together, with too many network rows."""
    at_most(field, evaluations, settings().max_evaluations, _ROWS)


def _prompts(job: RenderJob) -> dict[str, str]:
    prompts = {"prompt": job.prompt, "negative_prompt": job.negative_prompt}
    for i, region in enumerate(job.regions):
        prompts |= {f"regions.{i}.prompt": region.prompt, f"regions.{i}.negative_prompt": region.negative_prompt or ""}
    return prompts


def at_most(field: str, value: int, limit: int, of: str) -> None:
    """Raise BadInput for a value above a limit; `of` names what is counted, and the setting."""
    if value > limit:
        raise BadInput(field, value, f"at most {limit} ({of})")
