"""A contact sheet: many pictures in rows and columns on one, none larger than a browser likes."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

LONGEST_EDGE = 4096
"""Pixels of a sheet's longer side. 16 x 16 cells of any size still have 250 pixels each."""

_GAP = 4
_PAPER = (255, 255, 255)
_MISSING = (128, 128, 128)


def sheet(pictures: Iterable[Image.Image | None], cells: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """Pictures in rows, from the top left; None leaves a grey cell.

    `cells` is (columns, rows) and `size` (width, height) of a cell, in pixels; cells are smaller where the sheet
    would exceed LONGEST_EDGE. A picture that is larger than its cell is scaled to fit, a smaller one is centred.
    """
    scale = min(1.0, *((LONGEST_EDGE - _GAP * (n + 1)) / (n * pixels) for n, pixels in zip(cells, size, strict=True)))
    (columns, rows), (width, height) = cells, (max(1, int(pixels * scale)) for pixels in size)
    canvas = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), _PAPER)
    for i, source in enumerate(pictures):
        left, top = _GAP + i % columns * (width + _GAP), _GAP + i // columns * (height + _GAP)
        picture = Image.new("RGB", (width, height), _MISSING) if source is None else source.convert("RGB")
        picture.thumbnail((width, height))
        canvas.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
    return canvas
