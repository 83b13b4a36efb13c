"""Several prompts in one row of a network: what each has of the latent, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.conditioning import (
    POOLED_PROMPT_EMBEDS,
    PROMPT_EMBEDS,
    Conditioning,
)
from prefect_regional_diffusion.sampling_core.tensors.types import Mask
from prefect_regional_diffusion.sampling_core.tensors.window import Lattice, Window


class RowPrompt(NamedTuple):
    """A prompt of one row, and its weight [h, w] at each cell of the latent."""

    conditioning: Conditioning
    weight: Mask

    def within(self, window: Window, lattice: Lattice) -> RowPrompt:
        """The same for a row that shows a window of a canvas of `lattice` cells."""
        return self._replace(weight=window.cut_scaled(self.weight, lattice))


RowPrompts = Sequence[RowPrompt]
"""The prompts that share a row, that of its conditioning first; empty for a row with that one alone."""


def pooled(own: Tensor, rows: Sequence[RowPrompts]) -> Tensor:
    """One vector for all prompts of each row [r, features]: their mean, by the area that they have of the canvas.

    `own` [r, features] are the vectors of the rows' first prompts.
    """
    vectors = own.clone() if any(rows) else own
    for i, prompts in enumerate(rows):
        if prompts:
            parts = [
                prompt.conditioning[POOLED_PROMPT_EMBEDS][0].to(own) * float(prompt.weight.mean()) for prompt in prompts
            ]
            vectors[i] = torch.stack(parts).sum(dim=0)
    return vectors


def joined_tokens(own: Tensor, rows: Sequence[RowPrompts]) -> Tensor:
    """The tokens of all prompts of each row, one prompt after the other, and zeros up to the longest row.

    `own` [r, tokens, features] are those of the rows' first prompts; without others it is returned as it is.
    """
    others = [[prompt.conditioning[PROMPT_EMBEDS][0] for prompt in prompts[1:]] for prompts in rows]
    longest = max(sum(len(tokens) for tokens in of_row) for of_row in others)
    added = own.new_zeros(len(own), longest, own.shape[2])
    for i, of_row in enumerate(others):
        if of_row:
            tokens = torch.cat(of_row)
            added[i, : len(tokens)] = tokens.to(own)
    return torch.cat([own, added], dim=1) if longest else own


def spans(own_tokens: int, prompts: RowPrompts) -> list[slice]:
    """Where the tokens of each of a row's prompts are among those of the row."""
    first, found = own_tokens, [slice(0, own_tokens)]
    for prompt in prompts[1:]:
        last = first + prompt.conditioning[PROMPT_EMBEDS].shape[1]
        found.append(slice(first, last))
        first = last
    return found
