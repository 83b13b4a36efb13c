"""Limits of the parts of a canvas that a denoiser evaluates alone."""

from __future__ import annotations

from typing import NamedTuple


class PartialCanvas(NamedTuple):
    """Which parts of a canvas a denoiser may evaluate alone, in pixels."""

    least_pixels: int
    """Edge of the smallest: the model was not trained on less."""
    multiple: int
    """Their edges are at multiples of this, so that its coarsest feature maps coincide with those of the canvas."""
    one_place: bool = False
    """All rows of a forward show the same part: the positions of their tokens are an input of the forward, not of a
    row."""
