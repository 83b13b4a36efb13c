"""Textual inversions (Gal et al. 2022): vectors that a text encoder is given in the place of a word's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

MOST_VECTORS = 1024
"""Of one file: more than any prompt has tokens."""


class TextualInversion(NamedTuple):
    """The vectors [n, features] for each text encoder of a model, in the order of the encoders; n is the same."""

    vectors: tuple[Tensor, ...]

    def __len__(self) -> int:
        """How many tokens it takes the place of."""
        return len(self.vectors[0])


Embeddings = Mapping[str, TextualInversion]
"""By the names that prompts have for them."""
NO_EMBEDDINGS: Embeddings = MappingProxyType({})


def textual_inversion(tensors: Mapping[str, Tensor], widths: Mapping[str, int]) -> TextualInversion:
    """The vectors in a file. `widths` are the features of a model's text encoders, under the names that files have.

    The only tensor of a file may have any name. Raises ValueError, which says what a file for this model has.
    """
    by_name = tensors
    if len(widths) == 1 and len(tensors) == 1:
        by_name = dict.fromkeys(widths, *tensors.values())
    requirement = " and ".join(f"{name} of {width} features" for name, width in widths.items())
    vectors = [_vectors(by_name[name], width) for name, width in widths.items() if name in by_name]
    if len(vectors) < len(widths):
        raise ValueError(f"a file with {requirement} ({_summary(tensors)})")
    finite_vectors = [rows for rows in vectors if rows is not None]
    if (
        len(finite_vectors) < len(vectors)
        or len({len(rows) for rows in finite_vectors}) > 1
        or not 1 <= len(finite_vectors[0]) <= MOST_VECTORS
    ):
        raise ValueError(f"a file with up to {MOST_VECTORS} vectors for {requirement} ({_summary(tensors)})")
    return TextualInversion(tuple(finite_vectors))


def _vectors(tensor: Tensor, width: int) -> Tensor | None:
    """Vectors [n, features] of finite numbers; None for a tensor that holds no such."""
    rows = tensor[None] if tensor.ndim == 1 else tensor
    fits = rows.ndim == 2 and rows.shape[1] == width and rows.is_floating_point() and bool(rows.isfinite().all())
    return rows.float() if fits else None


def _summary(tensors: Mapping[str, Tensor]) -> str:
    shapes: Sequence[str] = [f"{name:.40} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())]
    return ", ".join(shapes[:3]) + (", ..." if len(shapes) > 3 else "") or "it has no tensors"
