"""The sheet of a grid: each picture in its place, within a limit."""

from __future__ import annotations

import pytest
from PIL import Image

from prefect_regional_diffusion.tasks.ui.contact_sheet import LONGEST_EDGE, sheet

COLORS = ["red", "lime", "blue", "yellow", "cyan", "black"]


def colors(made: Image.Image, columns: int, rows: int) -> list[tuple[int, ...]]:
    """What is in the middle of each cell."""
    middles = [
        (made.width * (2 * column + 1) // (2 * columns), made.height * (2 * row + 1) // (2 * rows))
        for row in range(rows)
        for column in range(columns)
    ]
    return [made.getpixel(middle) for middle in middles]  # pyright: ignore[reportReturnType] - of RGB, always a tuple


def test_row_by_row_with_grey_for_what_is_missing() -> None:
    pictures = [Image.new("RGB", (64, 32), color) for color in COLORS]
    whole = sheet(pictures, (3, 2), (64, 32))
    assert whole.size == (3 * 64 + 16, 2 * 32 + 12)
    assert colors(whole, 3, 2) == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (0, 0, 0)]
    holed = sheet([*pictures[:4], None, pictures[5]], (3, 2), (64, 32))
    assert colors(holed, 3, 2)[4] == (128, 128, 128)


@pytest.mark.parametrize("cells", [(16, 16), (16, 1), (1, 16)])
def test_never_larger_than_the_limit(cells: tuple[int, int]) -> None:
    made = sheet((Image.new("RGB", (512, 1024), "red") for _ in range(cells[0] * cells[1])), cells, (512, 1024))
    assert LONGEST_EDGE * 0.95 < max(made.size) <= LONGEST_EDGE
    assert set(colors(made, *cells)) == {(255, 0, 0)}


def test_pictures_of_other_sizes_fit_their_cells() -> None:
    made = sheet([Image.new("RGB", (200, 50), "red"), Image.new("RGB", (20, 20), "lime")], (2, 1), (100, 100))
    assert colors(made, 2, 1) == [(255, 0, 0), (0, 255, 0)]
    assert made.getpixel((54, 10)) == (255, 255, 255), "nothing is stretched"
