"""Dilation of masks by a square, at a cost that does not depend on the square's size."""

from __future__ import annotations

import math

import torch

from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask


def dilated(masks: AnyMask, edge: int) -> AnyMask:
    """Each pixel with the largest value in a square of `edge` pixels around it; there is nothing beyond the masks.

    An even square has one pixel more above and to the left of its middle than below and to the right. Maxima are
    exact: every processor has the same bits.
    """
    # Here, because importing it takes as long as planning a job, and few masks grow.
    from scipy.ndimage import maximum_filter1d

    values = masks.numpy()
    for axis in (-1, -2):
        # A square beyond twice the canvas reaches no further.
        size = min(edge, 2 * values.shape[axis] + edge % 2)
        values = maximum_filter1d(values, size, axis=axis, mode="constant", cval=-math.inf)
    return torch.from_numpy(values)
