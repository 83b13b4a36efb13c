"""Where stochastic steps get their noise: each source answers the same question with the same numbers."""

from __future__ import annotations

import hashlib
from functools import cached_property

import torch

from sampling_core._types import Latent
from sampling_core.brownian import BrownianNoise
from sampling_core.levels import Level
from sampling_core.noise import check_seed

Shape = tuple[int, int, int, int]


class StepNoise:
    """Noise as a function of (seed, step, stage): the same in whatever order it is asked for.

    One field [b, c, h, w] for all who take a step together; the Brownian path spans the sigmas `low` to `high`.
    """

    def __init__(self, shape: Shape, seed: int, low: float, high: float) -> None:
        self._shape, self._seed, self._span = shape, seed, (low, high)

    def fresh(self, step: int, stage: int = 0) -> Latent:
        # Hashed, so that neighbouring seeds and steps have nothing in common, nor any with the initial noise.
        key = hashlib.blake2b(f"{self._seed}/{step}/{stage}".encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(key, "little"))
        return torch.randn(self._shape, generator=generator, dtype=torch.float32)

    @cached_property
    def _path(self) -> BrownianNoise:
        return BrownianNoise(self._shape, self._seed, *self._span)

    def between(self, sigma: float, sigma_next: float) -> Latent:
        return self._path.increment(sigma, sigma_next)


class SequentialNoise:
    """ComfyUI's noise: one generator, started with the seed, draws for step after step.

    The first draw is the same tensor as the initial noise of that seed. `draws` is how many a step
    makes; the Brownian path spans the sigmas `low` to `high`. Raises BadInput for impossible seeds.
    """

    def __init__(self, shape: Shape, seed: int, draws: int, low: float, high: float) -> None:
        check_seed(seed)
        self._shape, self._seed, self._draws, self._span = shape, seed, draws, (low, high)
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._drawn: list[Latent] = []

    def fresh(self, step: int, stage: int = 0) -> Latent:
        number = step * self._draws + stage
        while len(self._drawn) <= number:
            self._drawn.append(torch.randn(self._shape, generator=self._generator, dtype=torch.float32))
        return self._drawn[number]

    @cached_property
    def _path(self) -> BrownianNoise:
        return BrownianNoise(self._shape, self._seed, *self._span)

    def between(self, sigma: float, sigma_next: float) -> Latent:
        return self._path.increment(sigma, sigma_next)


def span(ladder: tuple[Level, ...]) -> tuple[float, float]:
    """The smallest positive and the largest sigma of a ladder: what a Brownian path has to reach."""
    sigmas = [level.sigma for level in ladder]
    return min((sigma for sigma in sigmas if sigma > 0), default=0.0), max(sigmas)
