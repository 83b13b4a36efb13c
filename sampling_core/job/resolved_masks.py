"""A mask of a job before it is drawn, with nothing left to look up."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.job.mask_shapes import ColorMap, Image, MaskShape
from prefect_regional_diffusion.sampling_core.names import Fit, Size


class MaskFile(NamedTuple):
    """An image file that a mask is read from: the field that names it, its path, and how it is laid on the canvas."""

    field: str
    path: str
    fit: Fit


class ResolvedMask(NamedTuple):
    """A mask before it is drawn: the field it comes from, its shape, the size of what it is drawn on, and its edge.

    `size` is height and width, `grow` and `feather` change the edge; all in pixels.
    """

    field: str
    shape: MaskShape
    size: Size
    grow: int = 0
    feather: int = 0

    @property
    def file(self) -> MaskFile | None:
        """The image file that the mask is read from; None if it is drawn from numbers."""
        match self.shape:
            case Image(image=path, fit=fit):
                return MaskFile(f"{self.field}.image", path, fit)
            case ColorMap(color_map=path, fit=fit):
                return MaskFile(f"{self.field}.color_map", path, fit)
            case _:
                return None
