"""How large a job may be on this machine. The settings are the limits; a job's own fields have wider ones."""

from __future__ import annotations

from collections.abc import Callable

from sampling_core.errors import BadInput
from sampling_core.job import RenderJob
from tasks.settings import settings


def check_limits(job: RenderJob) -> None:
    """Raise BadInput for a job that asks for more than the settings allow; nothing is read for this."""
    limits = settings()
    _at_most("job", len(job.model_dump_json().encode()), limits.max_job_bytes, "bytes as JSON, REGIONAL_MAX_JOB_BYTES")
    canvas = job.width * job.height
    _at_most("width x height", canvas, limits.max_canvas_pixels, "pixels, REGIONAL_MAX_CANVAS_PIXELS")
    _at_most("steps", job.steps, limits.max_steps, "REGIONAL_MAX_STEPS")
    if job.node.mask_steps is not None:
        _at_most("node.mask_steps", job.node.mask_steps, limits.max_steps, "REGIONAL_MAX_STEPS")
    _at_most("regions", len(job.regions), limits.max_regions, "regions, REGIONAL_MAX_REGIONS")
    _at_most("batch_size", job.pictures, limits.max_pictures, "pictures, REGIONAL_MAX_PICTURES")
    check_cells("node.rows x columns", job.node.rows, job.node.columns)


def check_cells(field: str, rows: int, columns: int) -> None:
    """Raise BadInput for a grid of more cells than the settings allow."""
    _at_most(field, rows * columns, settings().max_cells, "cells, REGIONAL_MAX_CELLS")


def check_evaluations(counted: Callable[[], int]) -> None:
    """Raise BadInput for a job with too many network rows; they are counted only if there is a limit."""
    limit = settings().max_evaluations
    if limit is not None:
        _at_most("job", counted(), limit, "evaluations (network rows), REGIONAL_MAX_EVALUATIONS")


def _at_most(field: str, value: int, limit: int, of: str) -> None:
    if value > limit:
        raise BadInput(field, value, f"at most {limit} ({of})")
