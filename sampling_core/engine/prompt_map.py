"""Several prompts in one network row: each counts where the canvas has its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from prefect_regional_diffusion.sampling_core.tensors.types import Mask

P = TypeVar("P", str, str | None)


@dataclass(frozen=True, eq=False)
class PromptMap:
    """At least two prompts, no two of them equal, and the weight [h, w] of each. Weights sum to 1 at every cell.

    A prompt of None is no prompt at all. Two maps are equal if they are the same object.
    """

    prompts: tuple[str | None, ...]
    weights: tuple[Mask, ...]


def merged(prompts: Sequence[P], weights: Sequence[Mask]) -> tuple[P, PromptMap | None]:
    """The first prompt of a row, and the map of all of them; no map if one prompt has the whole canvas.

    Equal prompts are one, with the sum of their weights, and prompts without weight are left out: so prompts that are
    the same everywhere are a plain row. Weights are divided by their sum at each cell, which is more than 0.
    """
    by_prompt: dict[P, Mask] = {}
    for prompt, weight in zip(prompts, weights, strict=True):
        by_prompt[prompt] = by_prompt[prompt] + weight if prompt in by_prompt else weight
    shares = {prompt: weight for prompt, weight in by_prompt.items() if bool((weight > 0).any())}
    first = next(iter(shares))
    if len(shares) == 1:
        return first, None
    total = torch.stack(list(shares.values())).sum(dim=0)
    return first, PromptMap(tuple(shares), tuple(weight / total for weight in shares.values()))
