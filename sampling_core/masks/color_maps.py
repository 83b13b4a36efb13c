"""Colours of a colour map: which pixels have one, and which colours are near one that none has."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.tensors.types import RgbImage

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255 each."""

NEAR = 16
"""So far, in each channel, the noise of a JPEG moves most colours."""
_WORTH_A_TOLERANCE = 64
"""Beyond this difference it is another colour, not the same one saved badly."""


def pixels_of(photo: RgbImage, color: Color, tolerance: int = 0) -> Bool[Tensor, "photo_H photo_W"]:
    """Where each of red, green and blue differs from the colour's by no more than `tolerance`."""
    matches = torch.ones(photo.shape[:2], dtype=torch.bool)
    for channel, target in enumerate(color):
        values = photo[..., channel]
        matches &= (values >= max(target - tolerance, 0)) & (values <= min(target + tolerance, 255))
    return matches


def check_color(photo: RgbImage, color: Color, tolerance: int, field: str) -> None:
    """Raise BadInput, with the nearest colours that are there, for a colour that no pixel has."""
    if bool(pixels_of(photo, color, tolerance).any()):
        return
    nearest, least = _nearest(photo, color)
    allowed = f"a colour that the map has; the nearest are {', '.join(map(_color_text, nearest))}"
    if least <= _WORTH_A_TOLERANCE:
        allowed += f"; or a tolerance of {least} or more"
    raise BadInput(field, list(color), allowed)


def near_misses(photo: RgbImage, color: Color, tolerance: int) -> int:
    """Pixels that are near the colour and do not count as of it, if so many that it matters; else 0."""
    exact = int(pixels_of(photo, color, tolerance).sum())
    num_near = int(pixels_of(photo, color, tolerance + NEAR).sum()) - exact
    return num_near if num_near > 0.05 * exact else 0


def _nearest(photo: RgbImage, color: Color, most: int = 3) -> tuple[list[Color], int]:
    """Of the colours that are about as near as the nearest, the most frequent; and how far the nearest is."""
    codes = (photo[..., 0].int() << 16) | (photo[..., 1].int() << 8) | photo[..., 2].int()
    colors, counts = torch.unique(codes, return_counts=True)
    channels = torch.stack([colors >> 16, colors >> 8 & 255, colors & 255], dim=-1)
    distances = (channels - torch.tensor(color)).abs().amax(dim=-1)
    least = int(distances.min())
    candidates = (distances <= least + NEAR).nonzero()[:, 0].tolist()
    candidates.sort(key=lambda i: (-int(counts[i]), int(distances[i]), int(colors[i])))
    return [(int(r), int(g), int(b)) for r, g, b in channels[candidates[:most]].tolist()], least


def _color_text(color: Color) -> str:
    red, green, blue = color
    return f"#{red:02x}{green:02x}{blue:02x} [{red}, {green}, {blue}]"
