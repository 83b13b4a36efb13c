"""TensorInfo: where the tensors of a network lie in files, and how they are taken from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The types of numbers that weights may have, by what safetensors calls them."""

Order = Literal["as stored", "transposed", "halves swapped", "unit matrix"]
"""How the numbers of a tensor have to be moved: exchange its two axes, or the halves of its first one.

A unit matrix is in no file: the layer does nothing, and the layout leaves it out.
"""


class TensorInfo(NamedTuple):
    """Where a tensor is: the file, its name there, and what it becomes in the network."""

    file: str
    name: str
    shape: tuple[int, ...]
    """Its shape in the network: as it is stored, unless one of the fields below says how it is taken from there."""
    dtype: str
    rows: tuple[int, int] | None = None
    """The part of its first axis that is the tensor, if several are stored as one."""
    order: Order = "as stored"
    scale: str | None = None
    """The tensor that it is multiplied with, of one number, if it was divided by that to fit into 8 bits."""


Weights = dict[str, TensorInfo]
"""The tensors of one part, by the names that they have now."""
