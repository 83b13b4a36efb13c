"""The noise of stochastic steps: each source is a function of its arguments, independent of the order of calls."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import cached_property

import torch

from prefect_regional_diffusion.sampling_core.noise.brownian import BrownianNoise
from prefect_regional_diffusion.sampling_core.noise.initial import check_seed
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

Shape = tuple[int, int, int, int]


class CounterBasedNoise:
    """Noise as a function of (seed, picture, step, stage), independent of the order of calls and of the batch.

    One field [b, c, h, w] for all who take a step together, so `b` is one picture for each of `indices`, its
    place in the whole batch. The Brownian path spans the sigmas `low` to `high`.
    """

    def __init__(self, shape: Shape, seed: int, indices: Sequence[int], low: float, high: float) -> None:
        self._shape, self._seed, self._indices = (1, *shape[1:]), seed, tuple(indices)
        self._span = (low, high)

    @property
    def identity(self) -> tuple[object, ...]:
        """What determines every draw."""
        return self._shape, self._seed, self._indices, self._span

    def fresh(self, step: int, stage: int = 0, skipped: int = 0) -> Latent:
        return torch.cat([self._draw(f"{self._seed}/{index}/{step}/{stage}") for index in self._indices])

    def _draw(self, key: str) -> Latent:
        generator = torch.Generator("cpu").manual_seed(_derived_seed(key))
        return torch.randn(self._shape, generator=generator, dtype=torch.float32)

    @cached_property
    def _paths(self) -> list[BrownianNoise]:
        return [BrownianNoise(self._shape, _derived_seed(f"{self._seed}/{i}"), *self._span) for i in self._indices]

    def brownian_increment(self, sigma: float, sigma_next: float) -> Latent:
        return torch.cat([path.increment(sigma, sigma_next) for path in self._paths])


def _derived_seed(key: str) -> int:
    """A seed from a name, so that neighbours have nothing in common, nor any with the initial noise."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


class ComfyNoise:
    """ComfyUI's noise: one generator, started with the seed, draws for step after step.

    The first draw is the same tensor as the initial noise of that seed. `draws` is how many a step
    makes; the Brownian path spans the sigmas `low` to `high`. Thread-safe.
    Raises BadInput for impossible seeds.
    """

    def __init__(self, shape: Shape, seed: int, draws: int, low: float, high: float) -> None:
        check_seed(seed)
        self._shape, self._seed, self._draws, self._span = shape, seed, draws, (low, high)
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._draw_cache: list[Latent] = []
        self._lock = threading.Lock()

    @property
    def identity(self) -> tuple[object, ...]:
        """What determines every draw."""
        return self._shape, self._seed, self._draws, self._span

    def fresh(self, step: int, stage: int = 0, skipped: int = 0) -> Latent:
        number = step * self._draws + stage - skipped
        with self._lock:
            while len(self._draw_cache) <= number:
                self._draw_cache.append(torch.randn(self._shape, generator=self._generator, dtype=torch.float32))
            return self._draw_cache[number]

    @cached_property
    def _path(self) -> BrownianNoise:
        return BrownianNoise(self._shape, self._seed, *self._span)

    def brownian_increment(self, sigma: float, sigma_next: float) -> Latent:
        return self._path.increment(sigma, sigma_next)


class NoNoise:
    """Zeros of a shape: for runs that are only counted."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._zeros = torch.zeros(tuple(shape))

    def fresh(self, step: int, stage: int = 0, skipped: int = 0) -> Latent:
        return self._zeros

    def brownian_increment(self, sigma: float, sigma_next: float) -> Latent:
        return self._zeros


def span(sigma_schedule: tuple[Level, ...]) -> tuple[float, float]:
    """The smallest positive and the largest sigma of a schedule: what a Brownian path has to reach."""
    sigmas = [level.sigma for level in sigma_schedule]
    return min((sigma for sigma in sigmas if sigma > 0), default=0.0), max(sigmas)
