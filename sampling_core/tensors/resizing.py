"""Bilinear resizing as the original nodes do it, with the same bits on every processor."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.tensors.float32 import rounded
from prefect_regional_diffusion.sampling_core.tensors.types import MaskStack, ResizedMasks


def bilinear(masks: MaskStack, rows: int, columns: int) -> ResizedMasks:
    """Masks [n, 1, H, W] at another size [n, 1, rows, columns], as `torch.nn.functional.interpolate` has them.

    Without antialiasing: shrinking samples four neighbours and skips the rest. Along each axis the two neighbours are
    summed in float64 and rounded once to float32. Torch fuses products and sums on some processors and not on others,
    and where two pixels meet at one half, or add up to 1, the last bit decides what a node does. Rounded in this way
    they agree with what was recorded.
    """
    if masks.shape[2:] == (rows, columns):
        # The sums below would give each pixel back: once its own value, and none of its neighbour's.
        return masks.float()
    across, down = _neighbours(masks.shape[3], columns), _neighbours(masks.shape[2], rows)
    wide = masks.double()[:, :, :, across.first] * across.first_weight
    wide = (wide + masks.double()[:, :, :, across.second] * across.second_weight).float().double()
    tall = wide[:, :, down.first] * down.first_weight[:, None]
    return (tall + wide[:, :, down.second] * down.second_weight[:, None]).float()


class _Neighbours(NamedTuple):
    """For each place of the new axis the two places of the old one that it lies between, and their weights."""

    first: Tensor
    second: Tensor
    first_weight: Tensor
    second_weight: Tensor


@lru_cache(maxsize=64)
def _neighbours(size: int, new_size: int) -> _Neighbours:
    """Pixel centres are half a pixel in; beyond the outermost ones the edge goes on.

    Remembered, because thousands of passes of a node ask for the same sizes.
    """
    scale = rounded(size / new_size)
    places = [max(rounded(rounded(scale * (i + 0.5)) - 0.5), 0.0) for i in range(new_size)]
    first = [min(int(place), size - 1) for place in places]
    second = [min(i + 1, size - 1) for i in first]
    weights = [rounded(place - i) for place, i in zip(places, first, strict=True)]
    second_weight = torch.tensor(weights, dtype=torch.float64)
    return _Neighbours(torch.tensor(first), torch.tensor(second), (1 - second_weight).float().double(), second_weight)
