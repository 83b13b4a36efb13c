"""Tensor specs: types and shapes that named tensors must have, so that others can be refused before they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TensorSpec(NamedTuple):
    """Type and shape that a tensor must have. A dimension is a number, or the range of numbers that are allowed."""

    dtype: torch.dtype
    shape: tuple[int | range, ...]

    def fits(self, dtype: torch.dtype, shape: Sequence[int]) -> bool:
        """Whether a tensor of this type and shape is one of those meant."""
        if dtype != self.dtype or len(shape) != len(self.shape):
            return False
        return all(
            size in allowed if isinstance(allowed, range) else size == allowed
            for size, allowed in zip(shape, self.shape, strict=True)
        )

    @property
    def most_bytes(self) -> int:
        """Bytes of the largest tensor that fits."""
        return self.dtype.itemsize * math.prod(size[-1] if isinstance(size, range) else size for size in self.shape)


Specs = Mapping[str, TensorSpec]
"""By name."""


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    """The specs that these tensors alone fit, by shape and type."""
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def check_specs(tensors: Mapping[str, Tensor], specs: Specs) -> None:
    """Raise ValueError unless the tensors are exactly those that the specs name, of their types and shapes."""
    if tensors.keys() != specs.keys():
        raise ValueError(f"tensors {sorted(tensors)} where {sorted(specs)} are expected")
    for name, spec in specs.items():
        if not spec.fits(tensors[name].dtype, tensors[name].shape):
            raise ValueError(f"{name} is {tensors[name].dtype} of shape {tuple(tensors[name].shape)}, not {spec}")
