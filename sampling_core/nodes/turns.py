"""A node as a list of turns, taken one after the other on one latent: the sequential composition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sampling_core._types import Latent
from sampling_core.evaluate import Count
from sampling_core.nodes.calls import Call, Networks, Setting, sample_advanced
from sampling_core.nodes.masks import composite


class Turn(NamedTuple):
    """One sampler call of a node. With `restore`, only what its mask covers is taken from the result."""

    who: str
    """Name of the setting: `base`, or a region's."""
    call: Call
    restore: bool = False


class Played(NamedTuple):
    """A node after `turn` turns. Together with the node's turns it is all that is needed to go on."""

    turn: int
    latent: Latent


def play(
    turns: Sequence[Turn], settings: Mapping[str, Setting], played: Played, using: Networks
) -> Iterator[tuple[Played, Count]]:
    """Every state after `played`, with what each turn cost. Latents are boundary latents [b, c, h, w]."""
    for number in range(played.turn, len(turns)):
        turn = turns[number]
        reached, count = sample_advanced(settings[turn.who], turn.call, played.latent, using)
        if turn.restore:
            reached = composite(played.latent, reached, 0, 0, turn.call.mask)
        played = Played(number + 1, reached)
        yield played, count
