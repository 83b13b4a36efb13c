"""A rule-based reader of pictures: palette colours, textures and shapes, without any learned feature.

It knows the drawing rules of `training.scenes` and nothing of the model. Pictures are uint8
[height, width, 3]; masks are boolean [height, width].
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from training.scenes import CELL, INK, PALETTE, SHAPES, TEXTURES, Scene, shape_coverage, texture_ink

Bytes = npt.NDArray[np.uint8]
Names = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

COLOR_NAMES = (*PALETTE, "ink")
_COLORS = np.array([*PALETTE.values(), INK], dtype=np.float64)
INK_NAME = len(COLOR_NAMES) - 1
"""Indices of colours are those of COLOR_NAMES; this one is the ink's."""
SMALLEST_SHAPE = 0.03
"""A shape covers at least this share of its area; less is dirt."""


def nearest_colors(picture: Bytes) -> Names:
    """Index of the nearest palette colour (or ink) of each pixel, [height, width]."""
    distance = ((picture[:, :, None, :].astype(np.float64) - _COLORS) ** 2).sum(axis=-1)
    return distance.argmin(axis=-1)


def main_color(picture: Bytes, where: Mask) -> str:
    """The palette colour that most pixels of `where` are nearest to."""
    counts = Counter(nearest_colors(picture)[where].tolist())
    counts.pop(INK_NAME, None)
    return COLOR_NAMES[counts.most_common(1)[0][0]] if counts else ""


def rim(shape: tuple[int, ...], pixels: int = CELL) -> Mask:
    """The outermost `pixels` of a picture [height, width]: background, however large the shape is."""
    inner = np.zeros(shape, dtype=np.bool_)
    inner[pixels:-pixels, pixels:-pixels] = True
    return ~inner


def read_scene(picture: Bytes) -> Scene:
    """What a picture of one scene shows; a scene without a shape if none is found."""
    names = nearest_colors(picture)
    background = main_color(picture, rim(names.shape))
    shape_mask = largest_piece(names != COLOR_NAMES.index(background))
    if shape_mask.mean() < SMALLEST_SHAPE:
        return Scene(background)
    inner = eroded(shape_mask, 3)
    counts = Counter(names[inner].tolist())
    for other in (INK_NAME, COLOR_NAMES.index(background)):
        counts.pop(other, None)
    if not counts:
        return Scene(background)
    color = counts.most_common(1)[0][0]
    return Scene(background, COLOR_NAMES[color], _texture(picture, inner, _COLORS[color]), shape_of(shape_mask))


def _texture(picture: Bytes, inside: Mask, color: npt.NDArray[np.float64]) -> str:
    """The texture whose drawing, in this colour and ink, is nearest to the picture."""
    errors: dict[str, float] = {}
    for texture in TEXTURES:
        ink = texture_ink(texture, inside.shape[0], inside.shape[1])[..., None]
        rendering = color * (1 - ink) + np.array(INK) * ink
        errors[texture] = float(np.abs(picture - rendering)[inside].mean())
    return min(errors, key=lambda name: errors[name])


def shape_of(mask: Mask) -> str:
    """The shape that overlaps best with a mask when it is drawn to the same extent."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    middle = ((top + bottom) / 2, (left + right) / 2)
    extent = max(bottom - top, right - left)
    overlaps: dict[str, float] = {}
    for shape in SHAPES:
        # Each shape's own drawing reaches a little less far than its nominal radius, so a few sizes are tried.
        for scale in (0.46, 0.5, 0.54, 0.58):
            radius = max(extent * scale, CELL / 2)
            candidate = shape_coverage(shape, mask.shape[0], mask.shape[1], middle, radius, oversample=1) > 0.5
            overlap = float((candidate & mask).sum() / max((candidate | mask).sum(), 1))
            overlaps[shape] = max(overlaps.get(shape, 0.0), overlap)
    return max(overlaps, key=lambda name: overlaps[name])


def eroded(mask: Mask, pixels: int) -> Mask:
    """The mask without a rim of `pixels`, unless nothing would be left."""
    eroded = mask.copy()
    for _ in range(pixels):
        padded = np.pad(eroded, 1, constant_values=False)
        eroded = eroded & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return eroded if eroded.any() else mask


def largest_piece(mask: Mask) -> Mask:
    """The largest connected piece (4 neighbours), by spreading the highest label of each piece."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        updated = np.where(mask, np.maximum.reduce([labels, *neighbours]), 0)
        if (updated == labels).all():
            break
        labels = updated
    if not mask.any():
        return mask
    sizes = Counter(labels[mask].tolist())
    return labels == sizes.most_common(1)[0][0]
