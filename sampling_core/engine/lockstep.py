"""Steps that are taken together: what all of them ask is known before any of it is answered, so forwards are shared."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, TypeVar

from prefect_regional_diffusion.sampling_core.engine.guidance import Guidance, Request
from prefect_regional_diffusion.sampling_core.solvers.base import DenoisedPrediction, Step
from prefect_regional_diffusion.sampling_core.tensors.window import Window

K = TypeVar("K")
Y = TypeVar("Y")
A = TypeVar("A")
R = TypeVar("R")

RunStep = Generator[Mapping[int, Request], Mapping[int, DenoisedPrediction], R]
"""A step of a run: yields what its participants ask at the same time, by participant; returns the next state."""


def lockstep(steps: Mapping[K, Generator[Y, A, R]]) -> Generator[dict[K, Y], Mapping[K, A], dict[K, R]]:
    """All steps at once: yields in each round what the unfinished ones ask, and returns what each of them returned."""
    done: dict[K, R] = {}
    replies: Mapping[K, A | None] = dict.fromkeys(steps)
    while replies:
        asked: dict[K, Y] = {}
        for key, reply in replies.items():
            try:
                # A generator's first `send` must be None: it starts it.
                asked[key] = steps[key].send(reply)  # pyright: ignore[reportArgumentType]
            except StopIteration as stop:
                done[key] = stop.value
        if not asked:
            break
        answers = yield asked
        replies = {key: answers[key] for key in asked}
    return done


def guided(
    step: Step[Any], guidance: Guidance, window: Window | None = None, *, one_place: bool = False
) -> Generator[Request, DenoisedPrediction, Any]:
    """A solver's step whose queries say how their answers are guided, and what of the latent the network sees.

    The last arguments are those of `Request`.
    """
    try:
        query = next(step)
        while True:
            query = step.send((yield Request(query, guidance, window, one_place)))
    except StopIteration as stop:
        return stop.value
