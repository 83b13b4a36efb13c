"""What a picture shows of its layout, each figure from rules: all but seam and leak are shares of 1.

- success: the box shows the object in its colour and shape, at least half where and as large as training draws it
- IoU: of the object's pixels with the nearest drawing of its shape in that place; 0 if there is none
- background: the rim of what is to be seen of the box has its colour
- seam: contrast across borders that the scene does not ask for (0 to 255). On each line of pixels through a border,
  the sum of all differences between neighbours from 8 pixels before it to 8 behind, less the difference of the two
  backgrounds as prompted, and not less than 0. Lines that meet an object of one of the two are left out.
- leak: the mean change farther than 16 pixels from a box when its prompt is another, over the change inside
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.layouts.scenes import Layout
from benchmarks.reading import (
    COLOR_NAMES,
    INK_NAME,
    SMALLEST_SHAPE,
    Bytes,
    Mask,
    eroded,
    largest_piece,
    main_color,
    nearest_colors,
    shape_of,
)
from training.scenes import CELL, Scene, rgb, shape_coverage

LEAST_OVERLAP = 0.5
LEAST_COLORED = 0.25
BEYOND = 2 * CELL


class Scores(NamedTuple):
    """The figures of one picture: means over its regions, or over the lines through its borders."""

    success: float
    iou: float
    background: float
    seam: float
    """NaN where there is no border."""


class Change(NamedTuple):
    """Mean absolute change of pixels (0 to 255) where one prompt is another; NaN where there are none."""

    inside: float
    outside: float


def scores(picture: Bytes, layout: Layout) -> Scores:
    """What a picture [edge, edge, 3] shows of a layout."""
    owners, objects = layout.owners(), np.zeros((layout.edge, layout.edge), dtype=np.bool_)
    successes, overlaps, backgrounds = list[bool](), list[float](), list[bool]()
    for i, (box, scene) in enumerate(zip(layout.boxes, layout.scenes, strict=True)):
        part = (slice(box.top, box.bottom), slice(box.left, box.right))
        visible = owners[part] == i
        found = _object(picture[part], scene, visible)
        objects[part] |= found
        overlaps.append(_best_overlap(found, scene.shape, visible))
        successes.append(overlaps[-1] >= LEAST_OVERLAP and shape_of(found) == scene.shape)
        backgrounds.append(main_color(picture[part], visible & ~eroded(visible, CELL)) == scene.background)
    colors = [scene.background for scene in layout.scenes]
    # The soft outlines of objects are theirs, too.
    seam = _seam(picture, owners, ~eroded(~objects, CELL // 2), [*colors, layout.base])
    return Scores(float(np.mean(successes)), float(np.mean(overlaps)), float(np.mean(backgrounds)), seam)


def change(picture: Bytes, other: Bytes, layout: Layout) -> Change:
    """How two pictures differ, of which the second has the changed prompt."""
    difference = np.abs(picture.astype(float) - other.astype(float)).mean(axis=-1)
    index, _ = layout.changed
    inside, outside = difference[layout.owners() == index], difference[layout.far_from_changed(BEYOND)]
    return Change(*(float(pixels.mean()) if pixels.size else math.nan for pixels in (inside, outside)))


def _object(crop: Bytes, scene: Scene, visible: Mask) -> Mask:
    """The pixels of a crop [height, width] that show the scene's object: its largest piece, or none.

    Half of a striped or checkered object is ink, whatever its colour; one that is ink alone has no colour.
    """
    names = nearest_colors(crop)
    colored = names == COLOR_NAMES.index(scene.color)
    piece = largest_piece((colored | (names == INK_NAME)) & visible)
    enough = piece.mean() >= SMALLEST_SHAPE and colored[piece].mean() >= LEAST_COLORED
    return piece if enough else np.zeros_like(piece)


def _best_overlap(found: Mask, shape: str, visible: Mask) -> float:
    """The best intersection over union of an object with the drawings of its shape, as far as these are visible."""
    best = 0.0
    for drawing in _drawings(shape, *found.shape) if found.any() else ():
        shown = drawing & visible
        best = max(best, float((found & shown).sum() / (found | shown).sum()))
    return best


@lru_cache(maxsize=64)
def _drawings(shape: str, height: int, width: int) -> tuple[Mask, ...]:
    """A shape in a box of so many pixels, with the sizes and places of `training.canvases.place`."""
    drawings, extent = list[Mask](), min(height, width)
    for size, down, across in product((0.34, 0.36, 0.385, 0.41), (-0.25, 0.0, 0.25), (-0.25, 0.0, 0.25)):
        radius = extent * size
        center = (height / 2 + (height / 2 - radius) * down, width / 2 + (width / 2 - radius) * across)
        drawings.append(shape_coverage(shape, height, width, center, radius, oversample=1) > 0.5)
    return tuple(drawings)


def _seam(picture: Bytes, owners: npt.NDArray[np.int64], objects: Mask, colors: Sequence[str]) -> float:
    """Mean contrast across borders beyond that of the backgrounds; `colors` are by owner, the base's is the last."""
    light, palette = picture.astype(np.float64), [255 * rgb(color) for color in colors]
    upright, across = (light, owners, objects), (light.transpose(1, 0, 2), owners.T, objects.T)
    excesses = [
        max(0.0, float(np.abs(np.diff(profile, axis=0)).sum(axis=0).mean() - np.abs(palette[a] - palette[b]).mean()))
        for maps in (upright, across)
        for profile, a, b in _profiles(*maps)
    ]
    return float(np.mean(excesses)) if excesses else math.nan


def _profiles(
    light: npt.NDArray[np.float64], owners: npt.NDArray[np.int64], objects: Mask
) -> Iterator[tuple[npt.NDArray[np.float64], int, int]]:
    """The pixels [2 CELL, 3] of each row through a border between two owners, which have CELL pixels of it each."""
    for row, x in zip(*np.nonzero(np.diff(owners, axis=1)), strict=True):
        first, last = x + 1 - CELL, x + 1 + CELL
        if first < 0 or last > owners.shape[1] or objects[row, first:last].any():
            continue
        a, b = owners[row, x], owners[row, x + 1]
        if (owners[row, first : x + 1] == a).all() and (owners[row, x + 1 : last] == b).all():
            yield light[row, first:last], int(a), int(b)
