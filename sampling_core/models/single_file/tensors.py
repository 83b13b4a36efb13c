"""Tensors of a file by name: picked by prefix, and told how a network takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from prefect_regional_diffusion.sampling_core.models.stored import Stored, Weights

Tensors = Mapping[str, Stored]
"""What a file, or a part of it, holds, by the names that it has there."""


def below(tensors: Tensors, prefix: str) -> Weights:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}


def numbered(tensors: Tensors, prefix: str) -> int:
    """How many blocks `prefix`0., `prefix`1., ... there are, counted to the highest one."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    return max((int(found[1]) + 1 for name in tensors if (found := pattern.match(name))), default=0)


def linear(stored: Stored) -> Stored:
    """A convolution of kernel 1 as the linear layer that it is."""
    out, *rest = stored.shape
    return stored._replace(shape=(out, *rest[:1])) if set(rest[1:]) <= {1} else stored


def share(stored: Stored, index: int, of: int) -> Stored:
    """One of several tensors of equal size that are stored as one, below each other."""
    size = stored.shape[0] // of
    return stored._replace(shape=(size, *stored.shape[1:]), rows=(index * size, (index + 1) * size))


def transposed(stored: Stored) -> Stored:
    """A matrix with its axes exchanged."""
    return stored._replace(shape=stored.shape[::-1], order="transposed")


def replaced(name: str, words: Mapping[str, str]) -> str:
    """A name whose beginning is one of the words, with the other one."""
    for old, new in words.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name
