"""The pictures that controls read: what they are known by, and where they come to lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.job.resolved_controls import ControlPicture
from prefect_regional_diffusion.sampling_core.job.resolved_masks import ResolvedMask
from prefect_regional_diffusion.sampling_core.masks import rasterize as draw
from prefect_regional_diffusion.sampling_core.masks.image_fitting import Box
from prefect_regional_diffusion.sampling_core.planning.canonical_job import canonical_picture
from prefect_regional_diffusion.sampling_core.tensors.types import RgbImage


def control_name(picture: ControlPicture, digests: Mapping[str, str]) -> str:
    """What the picture is called among a job's masks and pictures: equal ones have the same name.

    `digests` gives the SHA-256 of image files by path.
    """
    return f"control {content_hash(canonical_picture(picture, digests))}"


def pixel_digests(
    job: ResolvedJob, tensors: Mapping[str, Tensor], digests: Mapping[str, str]
) -> dict[ControlPicture, str]:
    """SHA-256 (hex) of the pixels of each picture, which `tensors` has by `control_name`."""
    found: dict[ControlPicture, str] = {}
    for picture in job.control_pictures:
        pixels = tensors[control_name(picture, digests)]
        found[picture] = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
    return found


def control_box(job: ResolvedJob, picture: ControlPicture, photos: Mapping[str, RgbImage]) -> Box:
    """What a picture lies on: the canvas, or the smallest rectangle around a mask, grown and not feathered.

    `photos` holds image files by path. Raises BadInput for a colour that its map does not have.
    """
    if picture.place is None:
        return Box(0, 0, job.height, job.width)
    mask = ResolvedMask(picture.place.field, picture.place.shape, (job.height, job.width), picture.place.grow)
    inside = draw.grown(draw.rasterized(mask, photos), mask.grow) > 0
    (rows,), (columns,) = inside.any(1).nonzero(as_tuple=True), inside.any(0).nonzero(as_tuple=True)
    if not len(rows):
        # Regions without a pixel are refused where their masks are drawn.
        return Box(0, 0, job.height, job.width)
    top, left = int(rows[0]), int(columns[0])
    return Box(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)
