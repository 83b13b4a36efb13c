"""A part of a latent that a network is asked of alone: how it is cut out of the canvas, and how it is put back."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from torch import Tensor

from prefect_regional_diffusion.sampling_core.tensors.types import Latent, WindowLatent

Lattice = tuple[int, int]
"""Rows and columns of a canvas in latent cells."""


class Window(NamedTuple):
    """An upright rectangle inside a canvas, in latent cells."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, latent: Latent) -> WindowLatent:
        """What the window shows of a latent [b, c, h, w] of the canvas, as a view [b, c, height, width]."""
        return latent[:, :, self.top : self.top + self.height, self.left : self.left + self.width]

    def paste(self, part: WindowLatent, lattice: Lattice) -> Latent:
        """A latent of the canvas that has `part` [b, c, height, width] in the window, and 0 everywhere else."""
        canvas = part.new_zeros(*part.shape[:2], *lattice)
        self.cut(canvas).copy_(part)
        return canvas

    def cut_scaled(self, picture: Tensor, lattice: Lattice) -> Tensor:
        """What the window shows of a tensor [..., H, W] that covers the canvas at another resolution, as a view.

        Raises ValueError where an edge of the window is between two of its pixels.
        """
        edges: list[slice] = []
        spans = ((self.top, self.height), (self.left, self.width))
        for (start, extent), cells, pixels in zip(spans, lattice, picture.shape[-2:], strict=True):
            if start * pixels % cells or extent * pixels % cells:
                raise ValueError(f"a window of {cells} cells whose edges are between {pixels} pixels")
            edges.append(slice(start * pixels // cells, (start + extent) * pixels // cells))
        return picture[..., *edges]

    def share(self, lattice: Lattice) -> Fraction:
        """The part of the canvas' area that it has."""
        return Fraction(self.height * self.width, lattice[0] * lattice[1])
