"""How an image whose shape is not the canvas' is laid on it: cropped, whole, or stretched.

Shape is height to width. Images and canvases count as of one shape when the ratio differs by no more than
1 %: so much comes from rounding to whole pixels, and is stretched away unseen.
"""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.names import Fit, Size


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> Size:
        return self.height, self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns, as an index."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


class Placing(NamedTuple):
    """`source`, a part of the image, is resized to `target`, a part of the canvas."""

    source: Box
    target: Box


def placing(image: Size, canvas: Size, fit: Fit) -> Placing:
    """Where an image comes to lie.

    crop: its middle fills the canvas; contain: all of it lies in the middle of the canvas; stretch: all of it
    fills the canvas. Masks and init images of one size lie alike, so that they keep to each other.
    """
    if fit == "stretch" or same_shape(image, canvas):
        return Placing(Box(0, 0, *image), Box(0, 0, *canvas))
    if fit == "crop":
        return Placing(_middle(image, canvas), Box(0, 0, *canvas))
    return Placing(Box(0, 0, *image), _middle(canvas, image))


def same_shape(image: Size, canvas: Size) -> bool:
    """Whether height to width differs by no more than 1 %."""
    one, other = image[0] * canvas[1], image[1] * canvas[0]
    return 100 * abs(one - other) <= min(one, other)


def _middle(outer: Size, shape: Size) -> Box:
    """The largest box of a shape in the middle of a rectangle, to whole pixels."""
    height, width = outer
    if width * shape[0] > shape[1] * height:
        width = max(1, _divided(height * shape[1], shape[0]))
    else:
        height = max(1, _divided(width * shape[0], shape[1]))
    return Box((outer[0] - height) // 2, (outer[1] - width) // 2, height, width)


def _divided(number: int, divisor: int) -> int:
    """The quotient, rounded."""
    return (2 * number + divisor) // (2 * divisor)
