"""Matrices in memory as narrow as in their file: each layer widens its own while it is at work.

A layer's numbers are the same as if they had been widened when they were read, and so are the bits of its answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.tensor_info import DTYPES, Weights

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def narrow_dtypes(
    weights: Weights, placement: Placement, must_be_wide: Callable[[str], bool]
) -> dict[str, torch.dtype]:
    """The tensors that stay narrower than the networks compute, by name: matrices and kernels of layers."""
    dtypes: dict[str, torch.dtype] = {}
    for name, info in weights.items():
        dtype = DTYPES.get(info.dtype)
        # What was divided to fit, or is in no file, is wide when it is read: narrowed again, it would lose digits.
        is_computed = info.scale is not None or info.order == "unit matrix"
        if is_computed or dtype is None or dtype.itemsize >= placement.dtype.itemsize or len(info.shape) < 2:
            continue
        stays_narrow = placement.weights == "stored" or (placement.weights == "auto" and dtype in _FP8)
        if stays_narrow and name.endswith(".weight") and not must_be_wide(name):
            dtypes[name] = dtype
    return dtypes


def looks_at_types(network: Any) -> Callable[[str], bool]:
    """Whether the network's code looks at a tensor's type, by its name: diffusers lists such layers, and norms."""
    pattern_texts: list[str] = getattr(network, "_skip_layerwise_casting_patterns", None) or []
    # What is left out here would lose digits if it were narrowed; widening what is stored loses none.
    patterns = [re.compile(pattern) for pattern in pattern_texts if pattern != "norm"]
    return lambda name: any(pattern.search(name) for pattern in patterns)


def widen_in_use(network: Any, names: Iterable[str], dtype: torch.dtype) -> None:
    """Have the layers of these tensors compute with them as `dtype`."""
    from prefect_regional_diffusion.sampling_core.models.widening import widen_weight

    for name in names:
        widen_weight(network.get_submodule(name.removesuffix(".weight")), dtype)
