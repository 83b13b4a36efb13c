"""Conditioning: what a network is told beside a noisy latent, as named tensors.

A family chooses the names; those of diffusers are a good choice (`prompt_embeds`, `pooled_prompt_embeds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
"""The scale that a model with embedded guidance is told: [r], float32. It belongs to a row and not to its prompt."""

Layout = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
"""Name, type and shape without the row axis of each tensor, by name: conditionings of one layout can be stacked."""


@dataclass(frozen=True)
class Conditioning:
    """Named tensors [r, ...], one row per network row; an encoded prompt has one row. Not to be changed.

    A conditioning without tensors tells nothing and fits any number of rows: counting needs no prompts.
    """

    tensors: Mapping[str, Tensor]

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
        named = sorted(self.tensors.items())
        return tuple((name, tensor.dtype, tuple(tensor.shape[1:])) for name, tensor in named)

    def repeated(self, rows: int) -> Conditioning:
        """The one row of this conditioning, so many times. No memory is copied."""
        return Conditioning({name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in self.tensors.items()})

    def joined(self, other: Conditioning) -> Conditioning:
        """The tensors of both, which have as many rows. Raises ValueError for a name that both have."""
        if self.tensors.keys() & other.tensors.keys():
            raise ValueError("conditionings that are joined have tensors of different names")
        return Conditioning({**self.tensors, **other.tensors})

    def rows(self, part: slice) -> Conditioning:
        """Some of the rows, as views."""
        return Conditioning({name: tensor[part] for name, tensor in self.tensors.items()})


def stack(conditionings: Sequence[Conditioning]) -> Conditioning:
    """The rows of several conditionings (at least one), one after the other.

    Raises ValueError unless all have the same layout: what a shorter prompt is filled up with is for its family to say.
    """
    first, *others = conditionings
    if any(other.layout != first.layout for other in others):
        raise ValueError("conditionings of one forward have tensors of the same names, types and shapes")
    return Conditioning({name: torch.cat([one[name] for one in conditionings]) for name in first.tensors})
