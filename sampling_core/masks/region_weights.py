"""Joint composition: how the base and the regions share each latent cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Mask

Weights = tuple[Mask, tuple[Mask, ...]]
"""The base's weight and each region's [h, w]; together they sum to 1 at every cell."""


def by_weight(masks: Sequence[Mask], weights: Sequence[float]) -> Weights:
    """Regions cover a cell by the sum of their masks (at most 1) and share it by mask times weight (more than 0).

    The base fills what they leave.
    """
    stack = torch.stack(list(masks))
    cover = stack.sum(dim=0).clamp(max=1)
    # Masks that fill a cell together can miss 1 by rounding; the base would be evaluated for nothing.
    cover = torch.where(cover > 1 - 1e-6, 1.0, cover)
    weighted = stack * torch.tensor(list(weights), dtype=stack.dtype)[:, None, None]
    total = weighted.sum(dim=0)
    shares = torch.where(total > 0, cover * weighted / total, 0.0)
    return 1 - cover, tuple(shares)


def by_order(masks: Sequence[Mask]) -> Weights:
    """Each region lies over those before it, as layers do (Porter & Duff 1984, `over`); the base is at the bottom."""
    remaining, shares = torch.ones_like(masks[0]), list[Mask]()
    for mask in reversed(masks):
        shares.append(mask * remaining)
        remaining = remaining * (1 - mask)
    return torch.where(remaining < 1e-6, 0.0, remaining), tuple(reversed(shares))


def stack_below(upper: Weights, lower: Weights) -> Weights:
    """What the regions of `upper` leave to the base goes to those of `lower`, and of that the rest to the base."""
    base, shares = upper
    below, lower_shares = lower
    return base * below, (*shares, *(base * share for share in lower_shares))


def hard_partition(weights: Sequence[Mask], kinds: Sequence[str]) -> tuple[Mask, ...]:
    """The weights of participants, those of one kind blending and different kinds meeting at a hard edge.

    Participants of a kind carry the same noise; a blend of two different noises would have less of it than
    the level says. So each cell goes to the kind that has most of it (the last one where they tie).
    """
    names = list(dict.fromkeys(kinds))
    if len(names) == 1:
        return tuple(weights)
    totals = torch.stack(
        [torch.stack([w for w, kind in zip(weights, kinds, strict=True) if kind == name]).sum(dim=0) for name in names]
    )
    # Kinds tie where their weights differ by rounding alone. Of equal ones, argmax may return any; this is always the
    # last of them.
    best = totals >= totals.max(dim=0).values - 1e-6
    winner = (best * torch.arange(1, len(names) + 1)[:, None, None]).amax(dim=0) - 1
    by_kind = {name: (winner == i, totals[i]) for i, name in enumerate(names)}
    return tuple(
        torch.where(by_kind[kind][0], weight / by_kind[kind][1].clamp(min=1e-12), 0.0)
        for weight, kind in zip(weights, kinds, strict=True)
    )


def merge(latents: Sequence[Latent], weights: Sequence[Mask]) -> Latent:
    """The weighted sum of the participants' latents; one alone is returned untouched, to the bit."""
    if len(latents) == 1:
        return latents[0]
    parts = [latent * weight for latent, weight in zip(latents, weights, strict=True)]
    return torch.stack(parts).sum(dim=0)
