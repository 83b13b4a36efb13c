"""Masks: shapes, images and colour maps in pixels, brought to the latent lattice.

A region is drawn in pixels (1 inside, 0 outside), grown and feathered in pixels, then averaged over each latent
cell; a cell that an edge crosses gets the covered fraction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.mask_shapes import ColorMap, Ellipse, Image, Polygon, Rectangle
from prefect_regional_diffusion.sampling_core.job.resolved_masks import ResolvedMask
from prefect_regional_diffusion.sampling_core.masks.color_maps import Color, check_color, pixels_of
from prefect_regional_diffusion.sampling_core.masks.dilation import dilated
from prefect_regional_diffusion.sampling_core.masks.image_fitting import placing
from prefect_regional_diffusion.sampling_core.names import Fit, Size
from prefect_regional_diffusion.sampling_core.tensors.types import Mask, PixelMask, RgbImage


def _centers(size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel centres as fractions of the canvas: y [H, 1] and x [1, W]."""
    height, width = size
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    return y[:, None], x[None, :]


def rasterized(mask: ResolvedMask, photos: Mapping[str, RgbImage]) -> PixelMask:
    """A mask [H, W] of the size that it is drawn on, 0 to 1; `photos` holds image files by path.

    Raises BadInput for a colour that its map does not have.
    """
    size, shape = mask.size, mask.shape
    match shape:
        case Rectangle():
            return rectangle(size, shape.x, shape.y, shape.width, shape.height)
        case Ellipse():
            return ellipse(size, shape.center_x, shape.center_y, shape.radius_x, shape.radius_y)
        case Polygon():
            return polygon(size, shape.points)
        case Image():
            return from_image(size, photos[shape.image], shape.fit)
        case ColorMap():
            photo = photos[shape.color_map]
            check_color(photo, shape.color, shape.tolerance, f"{mask.field}.color")
            return from_color_map(size, photo, shape.color, shape.tolerance, shape.fit)


def rectangle(size: Size, x: float, y: float, width: float, height: float) -> PixelMask:
    """An upright rectangle; its corner and extent are fractions of the canvas."""
    at_y, at_x = _centers(size)
    return ((at_x >= x) & (at_x < x + width) & (at_y >= y) & (at_y < y + height)).float()


def ellipse(size: Size, center_x: float, center_y: float, radius_x: float, radius_y: float) -> PixelMask:
    """An upright ellipse; centre and radii are fractions of the canvas' width and height."""
    at_y, at_x = _centers(size)
    return (((at_x - center_x) / radius_x) ** 2 + ((at_y - center_y) / radius_y) ** 2 <= 1).float()


def polygon(size: Size, points: Sequence[tuple[float, float]]) -> PixelMask:
    """The inside of a closed polygon by the even-odd rule; points are (x, y) fractions of the canvas.

    For each edge only the rows are visited, and for all edges together the pixels once.
    """
    at_y, at_x = _centers(size)
    at_y, at_x = at_y[:, 0], at_x[0]
    # How many edges cross a row so that just so many of its pixels, counted from the left, lie before the crossing.
    odd = torch.zeros(size[0], size[1] + 1, dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if y0 == y1:
            continue
        (rows,) = ((at_y >= min(y0, y1)) & (at_y < max(y0, y1))).nonzero(as_tuple=True)
        edge_x = x0 + (at_y[rows] - y0) * (x1 - x0) / (y1 - y0)
        crossing = torch.searchsorted(at_x, edge_x)
        odd[rows, crossing] = ~odd[rows, crossing]
    # A pixel is inside if an odd number of crossings lie to its right. Counts of 8 bits keep what is odd.
    crossings = odd[:, 1:].flip(1).cumsum(1, dtype=torch.uint8)
    return (crossings & 1).flip(1).float()


def from_image(size: Size, photo: RgbImage, fit: Fit = "crop") -> PixelMask:
    """A picture's brightness (white is inside), resized to the canvas."""
    # One channel after the other: all three as floats would take twelve bytes a pixel.
    total = photo[..., 0].float().add_(photo[..., 1]).add_(photo[..., 2])
    return _placed(total.div_(3).div_(255), size, fit)


def from_color_map(size: Size, photo: RgbImage, color: Color, tolerance: int = 0, fit: Fit = "crop") -> PixelMask:
    """The pixels of a colour map that have this colour, resized to the canvas."""
    return _placed(pixels_of(photo, color, tolerance).float(), size, fit)


def _placed(mask: torch.Tensor, size: Size, fit: Fit) -> PixelMask:
    """A mask of any size on the canvas; what it leaves of that is outside."""
    height, width = mask.shape
    source, target = placing((height, width), size, fit)
    part = mask[source.slices]
    if source.size != target.size:
        part = F.interpolate(part[None, None], target.size, mode="bilinear", antialias=True)[0, 0].clamp(0, 1)
    if target.size == size:
        return part
    whole = torch.zeros(size)
    whole[target.slices] = part
    return whole


def grown(mask: PixelMask, pixels: int) -> PixelMask:
    """The mask grown by so many pixels on every side, corners stay square (dilation by a square).

    The work does not depend on how far it grows.
    """
    return dilated(mask, 2 * pixels + 1) if pixels > 0 else mask


def reach_of(feather: int) -> int:
    """Pixels, on each side of an edge, over which it fades: so an odd feather draws what the even one below it does."""
    return feather // 2


def feathered(mask: PixelMask, feather: int) -> PixelMask:
    """The mask with edges that fade linearly over `feather` pixels, half inside and half outside.

    The canvas' own border is no edge: a region that touches it stays whole there. The work does not depend on the
    feather. Values are counted in whole parts of 1 / 2**20, added up exactly, and divided once.
    """
    reach = reach_of(feather)
    if reach == 0:
        return mask
    edge = 2 * reach + 1
    # Sums along one axis: at most 513 * 2**20, as a feather is at most 512.
    across = torch.cat([_window_sums(part, reach).int() for part in (mask * _PARTS).round().int().split(_STRIP)])
    soft = torch.empty_like(mask)
    for part, place in zip(across.split(_STRIP, dim=1), soft.split(_STRIP, dim=1), strict=True):
        place.copy_((_window_sums(part.T, reach).double() / (edge * edge * _PARTS)).T)
    return soft


_PARTS = 2**20
_STRIP = 256
"""Rows or columns that are added up at once: all of a large canvas would take gigabytes in 64 bits."""


def _window_sums(lines: Int[Tensor, "lines places"], reach: int) -> Int[Tensor, "lines places"]:
    """For each place of each line, the sum of those up to `reach` away; beyond its ends a line goes on as it ends."""
    length = lines.shape[1]
    places = torch.arange(-reach - 1, length + reach).clamp(0, length - 1)
    up_to = lines[:, places].cumsum(1, dtype=torch.int64)
    return up_to[:, 2 * reach + 1 :] - up_to[:, : -2 * reach - 1]


def to_lattice(mask: PixelMask, cell: int) -> Mask:
    """The covered fraction of each latent cell of `cell` x `cell` pixels."""
    return F.avg_pool2d(mask[None, None], cell)[0, 0]


def check_extent(mask: PixelMask, cell: int, field: str, value: object) -> None:
    """Raise BadInput for a region that covers nothing, or less than one latent cell."""
    area = float(mask.sum())
    if area == 0:
        raise BadInput(field, value, "a mask that covers part of the canvas (this one is empty)")
    if area < cell * cell:
        allowed = f"a region of at least one latent cell, {cell} x {cell} pixels (this one has {area:.0f} pixels)"
        raise BadInput(field, value, allowed)
