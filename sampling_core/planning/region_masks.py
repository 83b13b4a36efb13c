"""Shapes -> masks, in the form that the job's composition takes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.job.resolved_masks import ResolvedMask
from prefect_regional_diffusion.sampling_core.masks import rasterize as draw
from prefect_regional_diffusion.sampling_core.masks.mask_cache import DrawnMasks
from prefect_regional_diffusion.sampling_core.planning.canonical_job import canonical_mask
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask, PixelMask, RgbImage


def region_masks(
    job: ResolvedJob,
    photos: Mapping[str, RgbImage],
    cell: int,
    digests: Mapping[str, str] | None = None,
    cache: DrawnMasks | None = None,
) -> tuple[AnyMask, ...]:
    """Each region's mask, grown and feathered; of a grid, its tile's. `photos` holds the mask files by path.

    In pixels for sequential composition, whose nodes resize masks themselves; on the latent lattice for the others.
    Equal masks are drawn once, also those of other jobs that are in `cache`; with that, `digests` must have the SHA-256
    of each mask file by path. Raises BadInput for a canvas that is no multiple of the cell, for colours that their map
    does not have, and for regions that are empty or smaller than one latent cell.
    """
    for name, pixels in (("width", job.width), ("height", job.height)):
        if pixels % cell:
            raise BadInput(name, pixels, f"a multiple of {cell} for this model")
    by_key: dict[str, AnyMask] = {}
    masks: list[AnyMask] = []
    for mask in job.masks:
        key = content_hash([canonical_mask(mask, digests or {}), mask.size, job.composition, cell])
        if key in by_key:
            # A copy: tensors that share memory cannot be written as one object.
            masks.append(by_key[key].clone())
            continue
        make_mask = partial(_draw_mask, job, mask, photos, cell)
        by_key[key] = make_mask() if cache is None else cache.get(key, make_mask)
        masks.append(by_key[key])
    return tuple(masks)


def _draw_mask(job: ResolvedJob, mask: ResolvedMask, photos: Mapping[str, RgbImage], cell: int) -> AnyMask:
    pixels = draw.rasterized(mask, photos)
    draw.check_extent(pixels, cell, mask.field, mask.shape.model_dump(exclude={"kind"}))
    pixels = draw.feathered(draw.grown(pixels, mask.grow), mask.feather)
    return draw.to_lattice(pixels, cell) if job.composition != "sequential" else pixels


def protected_pixels(job: ResolvedJob, photos: Mapping[str, RgbImage]) -> PixelMask | None:
    """1 where the init image stays as it is, else 0; None if nothing is protected. Soft masks are cut at a half.

    Raises BadInput for a colour that its map does not have.
    """
    if not job.protect:
        return None
    protected = torch.zeros(job.height, job.width)
    # Equal ones are drawn once; errors name the field of the first.
    for mask in {mask.shape: mask for mask in reversed(job.protect)}.values():
        torch.maximum(protected, draw.rasterized(mask, photos), out=protected)
    # A half that was resized may miss it by its last bit.
    return (protected >= 0.5 - 1e-6).float()
