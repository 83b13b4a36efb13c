"""The solver contract: solvers ask for predictions, they never call a model.

A step is a generator. It yields a `Query` whenever it needs a denoised prediction, is sent the
answer, and returns the next latent and the next state. So the driver can collect the questions of
all regions and answer them in one forward; and everything that must survive a crash is in the state.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from sampling_core._types import Latent
from sampling_core.levels import Level

S = TypeVar("S", bound=tuple[object, ...])


class Query(NamedTuple):
    """A request for the denoised prediction of `x` at `level`."""

    x: Latent
    level: Level


Step = Generator[Query, Latent, tuple[Latent, S]]


class NoState(NamedTuple):
    """State of a one-step method: nothing."""


@runtime_checkable
class Solver(Protocol[S]):
    """A method that takes a latent from one level to the next.

    Subclasses keep nothing between calls; `S` is a NamedTuple of tensors.
    """

    order: int
    """Order of convergence that the method reaches on a smooth problem."""

    def init(self, x: Latent) -> S:
        """The state before the first step of a run that starts at `x`."""
        ...

    def step(self, x: Latent, state: S, t: Level, s: Level) -> Step[S]:
        """One step from level `t` down to `s`: returns `(x_next, state_next)`."""
        ...


def transfer(x: Latent, denoised: Latent, t: Level, s: Level) -> Latent:
    """Move `x` from level `t` to `s`, believing `denoised`: the noise in x is kept and rescaled.

    `x = alpha_t D + sigma_t n` becomes `alpha_s D + sigma_s n` (DDIM, Song et al. 2020, equation 12
    with eta 0; the Euler step of the probability-flow ODE in EDM and in flow parametrisation).
    """
    ratio = s.sigma / t.sigma
    return ratio * x + (s.alpha - ratio * t.alpha) * denoised
