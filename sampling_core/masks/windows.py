"""Where a region's window lies: around all cells in which it has any weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.tensors.types import Mask
from prefect_regional_diffusion.sampling_core.tensors.window import Window


class WindowSize(NamedTuple):
    """What a window must have, in latent cells: a margin around the weight, a least edge, and edges at multiples."""

    margin: int = 0
    least: int = 1
    multiple: int = 1


def window_around(weights: Sequence[Mask], size: WindowSize) -> Window | None:
    """The smallest window around the cells at which any of these weights [h, w] is above 0, and its margin.

    None where it would be the whole canvas, or where there is no such cell. Edges are at multiples, or at the canvas'
    own ones; what is smaller than the least edge grows on both sides, and where the canvas ends on the other one.
    """
    inside = torch.stack([weight > 0 for weight in weights]).any(dim=0)
    if not bool(inside.any()):
        return None
    (top, bottom), (left, right) = (_span(inside.any(dim=axis).tolist(), size) for axis in (1, 0))
    window = Window(top, left, bottom - top, right - left)
    return None if (window.height, window.width) == inside.shape else window


def _span(inside: Sequence[bool], size: WindowSize) -> tuple[int, int]:
    """Start and end of a window along one axis of the canvas, by which cells must be in it."""
    edge, multiple = len(inside), size.multiple
    first, last = inside.index(True) - size.margin, edge - inside[::-1].index(True) + size.margin
    start, end = max(0, first // multiple * multiple), min(edge, -(-last // multiple) * multiple)
    least = min(edge, -(-size.least // multiple) * multiple)
    if end - start < least:
        before = -(-(least - (end - start)) // (2 * multiple)) * multiple
        start = max(0, min(start - before, (edge - least) // multiple * multiple))
        end = min(edge, max(end, start + least))
    return start, end
