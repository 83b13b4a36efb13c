"""Joint composition: how the base and the regions share each latent cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sampling_core._types import Latent, Mask


def partition_of_unity(masks: Sequence[Mask], weights: Sequence[float]) -> tuple[Mask, tuple[Mask, ...]]:
    """The base's weight and each region's weight [h, w]; together they sum to 1 at every cell.

    Regions cover a cell by the sum of their masks (at most 1) and share that cover in proportion to
    mask times weight (more than 0); the base fills what they leave.
    """
    stack = torch.stack(list(masks))
    cover = stack.sum(dim=0).clamp(max=1)
    # Masks that fill a cell together can miss 1 by rounding; the base would be evaluated for nothing.
    cover = torch.where(cover > 1 - 1e-6, 1.0, cover)
    wanted = stack * torch.tensor(list(weights), dtype=stack.dtype)[:, None, None]
    total = wanted.sum(dim=0)
    shares = torch.where(total > 0, cover * wanted / total, 0.0)
    return 1 - cover, tuple(shares)


def merge(latents: Sequence[Latent], weights: Sequence[Mask]) -> Latent:
    """The weighted sum of the participants' latents; one alone is returned untouched, to the bit."""
    if len(latents) == 1:
        return latents[0]
    parts = [latent * weight for latent, weight in zip(latents, weights, strict=True)]
    return torch.stack(parts).sum(dim=0)
