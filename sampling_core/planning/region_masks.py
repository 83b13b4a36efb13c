"""Shapes -> masks, as the composition of a job wants them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.job.comfyui_node import tiles_of
from prefect_regional_diffusion.sampling_core.job.mask_shapes import (
    ColorMap,
    Ellipse,
    Image,
    MaskShape,
    Polygon,
    Rectangle,
)
from prefect_regional_diffusion.sampling_core.job.render_job import DrawnMask, RenderJob
from prefect_regional_diffusion.sampling_core.masks import rasterize as draw
from prefect_regional_diffusion.sampling_core.masks.color_maps import check_color
from prefect_regional_diffusion.sampling_core.masks.image_fitting import Size
from prefect_regional_diffusion.sampling_core.masks.mask_cache import DrawnMasks
from prefect_regional_diffusion.sampling_core.planning.canonical_job import mask_meaning
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask, PixelMask, RgbImage


def region_masks(
    job: RenderJob,
    photos: Mapping[str, RgbImage],
    cell: int,
    digests: Mapping[str, str] | None = None,
    drawn: DrawnMasks | None = None,
) -> tuple[AnyMask, ...]:
    """Each region's mask, grown and feathered; of a grid, its tile's. `photos` holds the mask files by path.

    On the latent lattice for joint composition, in pixels for sequential, whose nodes resize masks themselves.
    Equal masks are drawn once, also those of other jobs that are in `drawn`; with that, `digests` must have the SHA-256
    of each mask file by path. Raises BadInput for a canvas that is no multiple of the cell, for colours that their map
    does not have, and for regions that are empty or smaller than one latent cell.
    """
    for name, pixels in (("width", job.width), ("height", job.height)):
        if pixels % cell:
            raise BadInput(name, pixels, f"a multiple of {cell} for this model")
    built: dict[str, AnyMask] = {}
    masks: list[AnyMask] = []
    for mask in job.drawn_masks():
        size = mask_size(job, mask.field)
        key = content_hash([mask_meaning(mask, digests or {}), size, job.composition, cell])
        if key in built:
            # A copy: tensors that share memory cannot be written as one object.
            masks.append(built[key].clone())
            continue
        draw_it = partial(_drawn, job, mask, size, photos, cell)
        built[key] = draw_it() if drawn is None else drawn.get(key, draw_it)
        masks.append(built[key])
    return tuple(masks)


def _drawn(job: RenderJob, mask: DrawnMask, size: Size, photos: Mapping[str, RgbImage], cell: int) -> AnyMask:
    pixels = _pixels(mask.field, size, mask.shape, photos)
    draw.check_extent(pixels, cell, mask.field, mask.shape.model_dump(exclude={"kind"}))
    pixels = draw.feathered(draw.grown(pixels, mask.grow), mask.feather)
    return draw.to_lattice(pixels, cell) if job.composition == "joint" else pixels


def protected_pixels(job: RenderJob, photos: Mapping[str, RgbImage]) -> PixelMask | None:
    """1 where the start image stays as it is, else 0; None if nothing is protected. Soft masks are cut at a half.

    Raises BadInput for a colour that its map does not have.
    """
    if not job.protect:
        return None
    size = (job.height, job.width)
    protected = torch.zeros(size)
    for shape, i in {shape: i for i, shape in reversed(list(enumerate(job.protect)))}.items():
        torch.maximum(protected, _pixels(f"protect.{i}", size, shape, photos), out=protected)
    # A half that was resized may miss it by its last bit.
    return (protected >= 0.5 - 1e-6).float()


def mask_size(job: RenderJob, field: str) -> Size:
    """Height and width in pixels of what the mask of a field is drawn on: the canvas, or a cell of the node's grid."""
    tiles = tiles_of(job.node) if field == "node.tile" else (1, 1)
    return job.height // tiles[0], job.width // tiles[1]


def _pixels(field: str, size: Size, shape: MaskShape, photos: Mapping[str, RgbImage]) -> PixelMask:
    match shape:
        case Rectangle():
            return draw.rectangle(size, shape.x, shape.y, shape.width, shape.height)
        case Ellipse():
            return draw.ellipse(size, shape.center_x, shape.center_y, shape.radius_x, shape.radius_y)
        case Polygon():
            return draw.polygon(size, shape.points)
        case Image():
            return draw.from_image(size, photos[shape.image], shape.fit)
        case ColorMap():
            photo = photos[shape.color_map]
            check_color(photo, shape.color, shape.tolerance, f"{field}.color")
            return draw.from_color_map(size, photo, shape.color, shape.tolerance, shape.fit)
