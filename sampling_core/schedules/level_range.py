"""Stretches of a run as noise levels: whether something acts in a step is then known from the level alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.errors import BadInput


class LevelRange(NamedTuple):
    """Noise levels (sigmas) up to `upto` and above `above`; None: without an end."""

    upto: float | None = None
    above: float | None = None

    def has(self, sigma: float) -> bool:
        return (self.upto is None or sigma <= self.upto) and (self.above is None or sigma > self.above)


ALL_LEVELS = LevelRange()


def level_range(sigmas: Sequence[float], start: float, end: float, field: str) -> LevelRange:
    """The levels of the steps between two shares of a run: step i of n is from i / n to (i + 1) / n.

    As in diffusers, a step counts as a whole or not at all. `sigmas` are those of the run's schedule, noisiest first,
    one more than there are steps. A level is asked for by its sigma, so nothing hangs on how often a sampler asks in a
    step, nor on where a run goes on: the level at which a range ends, where some samplers ask a second time, belongs to
    the step that follows. Passes on other schedules have the same levels.

    Raises BadInput for shares, those of `field` of a job, between which there is no step.
    """
    steps = len(sigmas) - 1
    acting = [i for i in range(steps) if not (i / steps < start or (i + 1) / steps > end)]
    if not acting:
        allowed = f"at least one step more than start ({start:g}): {steps} steps are {1 / steps:.3g} each"
        raise BadInput(f"{field}.end", end, allowed)
    first, last = acting[0], acting[-1]
    return LevelRange(upto=None if first == 0 else sigmas[first], above=None if last == steps - 1 else sigmas[last + 1])
