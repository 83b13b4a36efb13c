"""The size conditioning of a job with nothing left to look up."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields


class ResolvedSizes(NamedTuple):
    """What a size-conditioned model takes for the size of the original and for the corner of its crop, in pixels."""

    original_width: int
    original_height: int
    crop_left: int
    crop_top: int


def resolved_sizes(job: JobFields) -> ResolvedSizes | None:
    """None for a whole picture of the canvas' size, which is what models take where a job says nothing."""
    whole = ResolvedSizes(job.width, job.height, 0, 0)
    stated = job.size_conditioning
    if stated is None:
        return None
    sizes = ResolvedSizes(
        job.width if stated.original_width is None else stated.original_width,
        job.height if stated.original_height is None else stated.original_height,
        stated.crop_left,
        stated.crop_top,
    )
    return None if sizes == whole else sizes
