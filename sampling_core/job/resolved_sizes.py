"""The size conditioning of a job with nothing left to look up."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields


class ResolvedSizes(NamedTuple):
    """The size of the original and the corner of its crop, in pixels, as inputs of a size-conditioned model."""

    original_width: int
    original_height: int
    crop_left: int
    crop_top: int


def resolved_sizes(job: JobFields) -> ResolvedSizes | None:
    """None for a whole picture of the canvas' size, which is the default of models."""
    canvas_sizes = ResolvedSizes(job.width, job.height, 0, 0)
    conditioning = job.size_conditioning
    if conditioning is None:
        return None
    sizes = ResolvedSizes(
        job.width if conditioning.original_width is None else conditioning.original_width,
        job.height if conditioning.original_height is None else conditioning.original_height,
        conditioning.crop_left,
        conditioning.crop_top,
    )
    return None if sizes == canvas_sizes else sizes
