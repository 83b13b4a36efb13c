"""Conditioning: the inputs of a network beside a noisy latent, as named tensors.

A family chooses the names; those of diffusers are a good choice (`prompt_embeds`, `pooled_prompt_embeds`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

PROMPT_EMBEDS = "prompt_embeds"
"""What UNets and most transformers attend to: [r, tokens, features]."""

POOLED_PROMPT_EMBEDS = "pooled_prompt_embeds"
"""One vector for a whole prompt: [r, features]."""

PROMPT_LENGTH = "prompt_length"
"""How many tokens of `PROMPT_EMBEDS` are the prompt's; the others fill it up: [r], int64."""

TIME_IDS = "time_ids"
"""Numbers that are embedded like a time: [r, numbers]."""

GUIDANCE = "guidance"
"""The scale as an input of models with embedded guidance: [r], float32. It belongs to a row, not to its prompt."""

PLACE = "place"
"""Of a row that shows a part of a canvas, where that is: its top and left, and the canvas' rows and columns, in latent
cells: [r, 4], int64. It belongs to a row and not to its prompt, and networks without positions have no use for it."""

Layout = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
"""Name, type and shape without the row axis of each tensor, by name: conditionings of one layout can be stacked.

An axis along which a tensor may be repeated is 0.
"""

MOST_REPEATS = 4
"""The shortest prompt of a forward is repeated at most so often, as in ComfyUI: beyond that, two forwards cost less."""


@dataclass(frozen=True)
class Conditioning:
    """Named tensors [r, ...], one row per network row; an encoded prompt has one row. Not to be changed.

    A conditioning without tensors fits any number of rows: counting forwards needs no prompts.
    """

    tensors: Mapping[str, Tensor]
    repeatable: frozenset[str] = frozenset()
    """Names of tensors [r, n, ...] that may be repeated along n without changing the network's answer: it attends to
    them, and they have no positions. So a prompt of one chunk can share a forward with a prompt of two."""

    def __post_init__(self) -> None:
        """Raises ValueError for tensors without a row axis, or of different numbers of rows."""
        if any(tensor.ndim == 0 for tensor in self.tensors.values()):
            raise ValueError("a conditioning's tensors have an axis for rows")
        if len({len(tensor) for tensor in self.tensors.values()}) > 1:
            raise ValueError("a conditioning's tensors have as many rows each")

    def __getitem__(self, name: str) -> Tensor:
        """The tensor [r, ...] of this name. Raises KeyError."""
        return self.tensors[name]

    @property
    def layout(self) -> Layout:
        """What must agree for rows to share a forward."""
        entries: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
        for name, tensor in sorted(self.tensors.items()):
            shape = tuple(tensor.shape[1:])
            entries.append((name, tensor.dtype, (0, *shape[1:]) if name in self.repeatable else shape))
        return tuple(entries)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Sizes of the axes along which tensors may be repeated, by name."""
        return tuple(self.tensors[name].shape[1] for name in sorted(self.repeatable & self.tensors.keys()))

    def repeated(self, rows: int) -> Conditioning:
        """The one row of this conditioning, so many times. No memory is copied."""
        tensors = {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors)

    def joined(self, other: Conditioning) -> Conditioning:
        """The tensors of both, which have as many rows. Raises ValueError for a name that both have."""
        if self.tensors.keys() & other.tensors.keys():
            raise ValueError("conditionings that are joined have tensors of different names")
        return Conditioning({**self.tensors, **other.tensors}, self.repeatable | other.repeatable)

    def rows(self, part: slice) -> Conditioning:
        """Some of the rows, as views."""
        return replace(self, tensors={name: tensor[part] for name, tensor in self.tensors.items()})


def stack(conditionings: Sequence[Conditioning]) -> Conditioning:
    """The rows of several conditionings (at least one), one after the other.

    Repeatable tensors are repeated up to the least common multiple of their lengths. Raises ValueError unless all have
    the same layout: other tensors of shorter prompts are padded by their family.
    """
    first, *others = conditionings
    if any(other.layout != first.layout for other in others):
        raise ValueError("conditionings of one forward have tensors of the same names, types and shapes")
    tensors = {name: [conditioning[name] for conditioning in conditionings] for name in first.tensors}
    for name in first.repeatable & tensors.keys():
        length = math.lcm(*(tensor.shape[1] for tensor in tensors[name]))
        tensors[name] = [_repeat(tensor, length) for tensor in tensors[name]]
    return replace(first, tensors={name: torch.cat(parts) for name, parts in tensors.items()})


def stackable(lengths: Sequence[tuple[int, ...]]) -> bool:
    """Whether conditionings (at least one) of one layout and of these `lengths` are worth sharing a forward."""
    return all(math.lcm(*sizes) <= MOST_REPEATS * min(sizes) for sizes in zip(*lengths, strict=True))


def _repeat(tensor: Tensor, length: int) -> Tensor:
    """A tensor [r, n, ...], repeated along n up to a length. One that is long enough is not copied."""
    times = length // tensor.shape[1]
    return tensor if times == 1 else torch.cat([tensor] * times, dim=1)
