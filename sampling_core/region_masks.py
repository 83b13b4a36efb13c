"""Shapes -> masks, as the composition of a job wants them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sampling_core import masks as draw
from sampling_core._types import AnyMask, Photo, PixelMask
from sampling_core.color_maps import check_color
from sampling_core.errors import BadInput
from sampling_core.fitting import Size
from sampling_core.job import RenderJob
from sampling_core.shapes import ColorMap, Ellipse, Image, Polygon, Rectangle, Shape


def region_masks(job: RenderJob, photos: Mapping[str, Photo], cell: int) -> tuple[AnyMask, ...]:
    """Each region's mask, grown and feathered; of a grid, its tile's. `photos` holds the mask files by path.

    On the latent lattice for joint composition, in pixels for sequential, whose nodes resize masks themselves.
    Raises BadInput for a canvas that is no multiple of the cell, for colours that their map does not have, and
    for regions that are empty or smaller than one latent cell.
    """
    for name, pixels in (("width", job.width), ("height", job.height)):
        if pixels % cell:
            raise BadInput(name, pixels, f"a multiple of {cell} for this model")
    built: list[AnyMask] = []
    for field, shape, grow, feather in job.drawn_masks():
        mask = _pixels(field, mask_size(job, field), shape, photos)
        draw.check_extent(mask, cell, field, shape.model_dump(exclude={"kind"}))
        mask = draw.feathered(draw.grown(mask, grow), feather)
        built.append(draw.to_lattice(mask, cell) if job.composition == "joint" else mask)
    return tuple(built)


def protected_pixels(job: RenderJob, photos: Mapping[str, Photo]) -> PixelMask | None:
    """1 where the start image stays as it is, else 0; None if nothing is protected. Soft masks are cut at a half.

    Raises BadInput for a colour that its map does not have.
    """
    if not job.protect:
        return None
    size = (job.height, job.width)
    stack = torch.stack([_pixels(f"protect.{i}", size, shape, photos) for i, shape in enumerate(job.protect)])
    # A half that was resized may miss it by its last bit.
    return (stack.amax(dim=0) >= 0.5 - 1e-6).float()


def mask_size(job: RenderJob, field: str) -> Size:
    """Height and width in pixels of what the mask of a field is drawn on: the canvas, or a cell of the node's grid."""
    tiles = (job.node.rows, job.node.columns) if field == "node.tile" else (1, 1)
    return job.height // tiles[0], job.width // tiles[1]


def _pixels(field: str, size: Size, shape: Shape, photos: Mapping[str, Photo]) -> PixelMask:
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
