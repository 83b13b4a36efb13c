"""Tensors of a file by name: picked by prefix, with the slice and the order in which a network takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from prefect_regional_diffusion.sampling_core.models.tensor_info import TensorInfo, Weights

Tensors = Mapping[str, TensorInfo]
"""What a file, or a part of it, holds, by the names that it has there."""


def below(tensors: Tensors, prefix: str) -> Weights:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): info for name, info in tensors.items() if name.startswith(prefix)}


def num_blocks(tensors: Tensors, prefix: str) -> int:
    """How many blocks `prefix`0., `prefix`1., ... there are: one more than the highest number."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    return max((int(match[1]) + 1 for name in tensors if (match := pattern.match(name))), default=0)


def axis(tensors: Tensors, name: str, dim: int) -> int:
    """The length of one axis of a tensor; 0 if there is no such tensor or axis."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[dim] if len(shape) > dim else 0


def linear(info: TensorInfo) -> TensorInfo:
    """A convolution of kernel 1 as the linear layer that it is."""
    out, *rest = info.shape
    return info._replace(shape=(out, *rest[:1])) if set(rest[1:]) <= {1} else info


def share(info: TensorInfo, index: int, count: int) -> TensorInfo:
    """One of several tensors of equal size that are stored as one, below each other."""
    total = length(info)
    return rows(info, index * (total // count), total if index == count - 1 else (index + 1) * (total // count))


def rows(info: TensorInfo, first: int, end: int) -> TensorInfo:
    """The tensor that is stored as a part of another one: `first` and `end` count its first axis."""
    first, end = (min(place, length(info)) for place in (first, end))
    return info._replace(shape=(end - first, *info.shape[1:]), rows=(first, end))


def length(info: TensorInfo) -> int:
    """The length of a tensor's first axis; 0 for a single number."""
    return info.shape[0] if info.shape else 0


def swapped(info: TensorInfo) -> TensorInfo:
    """A tensor with the halves of its first axis exchanged: a shift and a scale that are stored the other way round."""
    return info._replace(order="halves swapped")


def end_swapped(name: str, info: TensorInfo) -> TensorInfo:
    """A tensor that is in no block of a transformer, with the halves of the modulation at the end exchanged: files of
    Stable Diffusion 3 and FLUX.1 have shift and scale there, diffusers scale and shift.
    """
    return swapped(info) if name.startswith("final_layer.adaLN_modulation.") else info


def transposed(info: TensorInfo) -> TensorInfo:
    """A matrix with its axes exchanged."""
    return info._replace(shape=info.shape[::-1], order="transposed")


def placed_layers(lengths: Mapping[str, int], prefix: str, convert: Callable[[Tensors], Weights]) -> Weights:
    """The layers of a network by the names of their weights, each with its place in a file: `name` is that of the layer
    there, `rows` and `order` say which of its rows they are.

    `lengths` are the rows of the file's layers; of those that are not divided they may be 0. `convert` is how the
    file's tensors, whose names begin with `prefix`, become those of the network.
    """
    return convert(
        {f"{prefix}{layer}.weight": TensorInfo("", layer, (length,), "") for layer, length in lengths.items()}
    )


def replaced(name: str, replacements: Mapping[str, str]) -> str:
    """A name with its beginning replaced, if that is one of the keys."""
    for old, new in replacements.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name
