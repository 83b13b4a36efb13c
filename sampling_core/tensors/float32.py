"""Single numbers in float32, with the same result on every processor.

Sums, products, quotients and roots of `numpy.float32` are exact to the last bit by IEEE 754. Logarithms and the like
are not: vector libraries choose another implementation on each kind of processor. Here they are computed in float64
and rounded once, which agrees with ComfyUI's float32 wherever its last bit decides (see `ModelLevels.timestep_of`).
"""

from __future__ import annotations

import math

from numpy import float32

Number = float | float32


def rounded(value: Number) -> float:
    """The nearest float32, as a Python number."""
    return float(float32(value))


def log(value: Number) -> float32:
    """The natural logarithm of a positive number."""
    return float32(math.log(value))


def exp(value: Number) -> float32:
    """e to the power of a number."""
    return float32(math.exp(value))


def logit(value: Number) -> float32:
    """log(value / (1 - value)) of a number between 0 and 1."""
    share = float32(value)
    return log(share / (1 - share))


def sigmoid(value: Number) -> float32:
    """1 / (1 + exp(-value))."""
    return 1 / (1 + exp(-value))


def evenly_spaced(first: Number, last: Number, count: int) -> list[float32]:
    """`count` numbers from `first` to `last`, each counted from the nearer end and rounded once.

    `torch.linspace` fuses the product and the sum on processors that can, and rounds twice on others.
    """
    start, stop = rounded(first), rounded(last)
    step = float((float32(stop) - float32(start)) / float32(max(count - 1, 1)))
    half = max(count // 2, 1)
    return [float32(start + step * i if i < half else stop - step * (count - 1 - i)) for i in range(count)]
