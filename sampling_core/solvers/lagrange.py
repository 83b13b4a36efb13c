"""Lagrange polynomials, which all linear multistep methods integrate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from numpy.polynomial import Polynomial


def lagrange_basis(nodes: Sequence[float], origin: float) -> tuple[Polynomial, ...]:
    """For each node the polynomial that is 1 there and 0 at the others, in the variable `node - origin`.

    An origin near the interval that is integrated over keeps high powers from cancelling.
    """
    return _basis(tuple(nodes), origin)


@lru_cache(maxsize=256)
def _basis(nodes: tuple[float, ...], origin: float) -> tuple[Polynomial, ...]:
    """Made once for all regions and jobs that are on the same step: it takes longer than the rest of a step."""
    basis: list[Polynomial] = []
    for j, node in enumerate(nodes):
        polynomial = Polynomial([1.0])
        for other in (n for k, n in enumerate(nodes) if k != j):
            polynomial = polynomial * Polynomial([origin - other, 1.0]) / (node - other)
        basis.append(polynomial)
    return tuple(basis)
