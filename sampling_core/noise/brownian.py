"""Brownian noise for SDE solvers: increments of one random path, independent of the order of calls."""

from __future__ import annotations

import math
import threading
from typing import cast

import torch
import torchsde

from prefect_regional_diffusion.sampling_core.noise.initial import check_seed
from prefect_regional_diffusion.sampling_core.tensors.float32 import rounded
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

_DIGITS = 6
"""The tree resolves noise levels to this decimal place (its tolerance of 1e-6)."""


class BrownianNoise:
    """A Brownian path W(sigma) of the shape [b, c, h, w] between two noise levels, fixed by a seed.

    The tree of Li et al., "Scalable gradients for stochastic differential equations" (2020), as in
    torchsde and with ComfyUI's conventions, so that its seeds carry over: one tree for the whole
    batch, levels in float32, always drawn on the CPU. Thread-safe.
    Negative seeds have no path and raise BadInput.
    """

    def __init__(self, shape: tuple[int, int, int, int], seed: int, sigma_min: float, sigma_max: float) -> None:
        check_seed(seed, lowest=0)
        low, high = rounded(sigma_min), rounded(sigma_max)
        self._span = round(low, _DIGITS), round(high, _DIGITS)
        # The tree caches what it has drawn, and changes with every call.
        self._lock = threading.Lock()
        self._tree = torchsde.BrownianTree(low, torch.zeros(shape), high, entropy=seed, tol=10.0**-_DIGITS)

    def increment(self, sigma: float, sigma_next: float) -> Latent:
        """`(W(sigma_next) - W(sigma)) / sqrt(|sigma_next - sigma|)`, of unit variance, float32.

        Depends on nothing but its arguments and those of the path. What an interval reaches beyond the
        path's own levels adds nothing to it, but counts in its length; an empty interval gives zeros.
        """
        low, high = sorted((rounded(sigma), rounded(sigma_next)))
        start, end = (round(min(max(level, self._span[0]), self._span[1]), _DIGITS) for level in (low, high))
        if start == end:
            return torch.zeros(self._tree.shape)
        with self._lock:
            difference = cast("torch.Tensor", self._tree(start, end))
        difference = difference / math.sqrt(rounded(high - low))
        return difference if sigma_next > sigma else -difference
