"""The solver contract: solvers request predictions, they never call a model.

A step is a generator. It yields a `DenoiseRequest` whenever it needs a prediction, is sent a `DenoisedPrediction`, and
returns the next latent and the next state. So the driver can collect the requests of all regions
and evaluate them in one forward; and everything that must survive a crash is in the state.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels
from prefect_regional_diffusion.sampling_core.tensors.float32 import exp, log, logit, rounded, sigmoid
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec
from prefect_regional_diffusion.sampling_core.tensors.types import Latent

S = TypeVar("S", bound=tuple[object, ...])


class DenoiseRequest(NamedTuple):
    """A request for the denoised prediction of `x` at `level`.

    With `unconditional` it is for the prediction under the negative prompt as well, also where guidance is
    off and that one would not be evaluated.
    """

    x: Latent
    level: Level
    unconditional: bool = False


class DenoisedPrediction(NamedTuple):
    """The guided denoised latent, and the one under the negative prompt if there is one."""

    denoised: Latent
    unconditional: Latent | None = None


Step = Generator[DenoiseRequest, DenoisedPrediction, tuple[Latent, S]]


@runtime_checkable
class Noise(Protocol):
    """The source of a stochastic step's unit noise [b, c, h, w]. Equal arguments give equal noise."""

    def fresh(self, step: int, stage: int = 0, skipped: int = 0) -> Latent:
        """Draw number `stage` of a step; independent of all others.

        `skipped` are draws that earlier steps could have made and did not, for sources that count draws.
        """
        ...

    def brownian_increment(self, sigma: float, sigma_next: float) -> Latent:
        """The increment of one Brownian path over `sigma`, divided by the root of the distance."""
        ...


class StepContext(NamedTuple):
    """The step that is to be taken: from `schedule[step_index]` to `schedule[step_index + 1]`."""

    sigma_schedule: tuple[Level, ...]
    step_index: int
    levels: ModelLevels
    """What the model was trained on."""
    noise: Noise

    @property
    def t(self) -> Level:
        """The level that x is at."""
        return self.sigma_schedule[self.step_index]

    @property
    def s(self) -> Level:
        """The level to go to."""
        return self.sigma_schedule[self.step_index + 1]

    @property
    def remaining(self) -> int:
        """Steps that follow this one."""
        return len(self.sigma_schedule) - 2 - self.step_index


class NoState(NamedTuple):
    """State of a one-step method: nothing."""


class History(NamedTuple):
    """Earlier predictions or slopes of a multistep method, oldest first, with their levels."""

    values: Float[Tensor, "k b c h w"]
    levels: Float[Tensor, "k 2"]

    @classmethod
    def empty(cls, x: Latent) -> History:
        return cls(x.new_zeros((0, *x.shape)), torch.zeros(0, 2, dtype=torch.float64))

    def __len__(self) -> int:
        # A tuple's own length would be its number of fields.
        return len(self.values)

    def with_(self, value: Latent, level: Level, most: int) -> History:
        """The history with one more entry, of which the latest `most` are kept."""
        values = torch.cat([self.values, value[None]])[-most:]
        levels = torch.cat([self.levels, torch.tensor([level], dtype=torch.float64)])[-most:]
        return History(values, levels)

    def level(self, back: int) -> Level:
        """The level of an entry; 1 is the latest."""
        alpha, sigma = self.levels[-back].tolist()
        return Level(alpha, sigma)


MOST_REMEMBERED = 4
"""Of all methods here: entries of a history."""


def memory_specs(fresh: tuple[Any, ...]) -> dict[str, TensorSpec]:
    """Specs of a solver's state after a step, by field, from the state that `init` makes: a history has entries then.

    Entries are along the first dimension. Any other of 0 is one of a latent without channels.
    """
    entries = range(1, MOST_REMEMBERED + 1)
    fields: dict[str, Tensor] = cast("Any", fresh)._asdict()
    return {
        name: TensorSpec(value.dtype, (entries, *value.shape[1:]) if value.shape[:1] == (0,) else tuple(value.shape))
        for name, value in fields.items()
    }


def check_memory(memory: tuple[Any, ...], sigma_schedule: Sequence[Level], step: int, levels: ModelLevels) -> None:
    """Raise ValueError for a solver's state that no run has after `step` steps, whatever its predictions are.

    Methods divide by differences of the levels in it, so these must be those of the schedule.
    """
    fields = cast("Any", memory)._asdict()
    if "levels" in fields:
        history = [Level(*row) for row in fields["levels"].tolist()]
        if len(history) != len(fields["values"]) or len(history) > step:
            raise ValueError(f"a history of {len(fields['values'])} entries with {len(history)} levels")
        expected = sigma_schedule[step - len(history) : step]
        if any(
            level not in (scheduled, finite_snr(scheduled, levels))
            for level, scheduled in zip(history, expected, strict=True)
        ):
            raise ValueError("a history of another schedule")
    if "tau" in fields and float(fields["tau"]) not in (0.0, 1.0):
        raise ValueError("a history with another strength of noise")


@runtime_checkable
class Solver(Protocol[S]):
    """A method that takes a latent from one level to the next.

    Subclasses keep nothing between calls; `S` is a NamedTuple of tensors.
    """

    order: int
    """Order of convergence that the method reaches on a smooth problem; 0 for methods that draw noise."""

    draws: int
    """How many fresh draws of noise a step makes."""

    brownian: bool
    """Whether the noise is the increments of one Brownian path."""

    def init(self, x: Latent) -> S:
        """The state before the first step of a run that starts at `x`."""
        ...

    def step(self, x: Latent, state: S, ctx: StepContext) -> Step[S]:
        """One step from level `ctx.t` down to `ctx.s`: returns `(x_next, state_next)`."""
        ...


class OneStep:
    """Base of methods without state between steps."""

    draws = 0
    brownian = False

    def init(self, x: Latent) -> NoState:
        return NoState()


class Multistep:
    """Base of methods whose state is a history of predictions or slopes."""

    draws = 0
    brownian = False

    def init(self, x: Latent) -> History:
        return History.empty(x)


def ddim_step(x: Latent, denoised: Latent, t: Level, s: Level) -> Latent:
    """Move `x` from level `t` to `s` for a constant prediction `denoised`: the noise in x is kept and rescaled.

    `x = alpha_t D + sigma_t n` becomes `alpha_s D + sigma_s n` (DDIM, Song et al. 2020, equation 12
    with eta 0; the Euler step of the probability-flow ODE in EDM and in flow parametrisation).
    """
    ratio = s.sigma / t.sigma
    return ratio * x + (s.alpha - ratio * t.alpha) * denoised


def ode_derivative(x: Latent, denoised: Latent, t: Level) -> Latent:
    """dx / dsigma of the probability-flow ODE at level `t` (Karras et al. 2022, algorithm 1, line 4)."""
    return (x - denoised) / t.sigma


def level_like(t: Level, sigma: float) -> Level:
    """The level with this sigma on the schedule that `t` (sigma > 0) belongs to."""
    return Level(1.0 if t.alpha == 1 else 1.0 - sigma, sigma)


def half_log_snr(level: Level) -> float:
    """lambda = log(alpha / sigma), the time of exponential integrators; infinite at the ends."""
    return math.log(level.alpha / level.sigma)


def interpolate_log_snr(t: Level, s: Level, share: float) -> Level:
    """The level that lies `share` of the way from `t` to `s` in half log-SNR.

    In float32, because that is where the network's timestep and the Brownian path are looked up: the last
    digit decides between two timesteps, and a path moves by the root of the distance.
    """
    log_ratio = log if t.alpha == 1 else logit
    start, stop = -log_ratio(t.sigma), -log_ratio(s.sigma)
    middle = start + share * (stop - start)
    if t.alpha == 1:
        return Level(1.0, float(exp(-middle)))
    sigma = float(sigmoid(-middle))
    # Not 1 - sigma: near sigma 1 float32 has few digits left of that.
    return Level(sigma * math.exp(float(middle)), sigma)


NEARLY_FIRST = 1e-4
"""Share of the way down at which methods in log-SNR time start a flow model."""


def finite_snr(level: Level, levels: ModelLevels) -> Level:
    """The level itself, or one a little below where its signal is zero and log-SNR has no value (flow at sigma 1)."""
    if level.alpha > 0:
        return level
    # Rounded to float32, of which so little is left of the signal that the rounding can be seen.
    return levels.level(rounded(levels.percent_to_sigma(NEARLY_FIRST)))


def weighted_sum(weights: Sequence[float], values: Sequence[Latent]) -> Latent:
    """The linear combination of latents that multistep methods end in."""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total


Samplers = dict[str, Solver[Any]]
"""Solvers by the names that users know."""


def on_gpu(samplers: Samplers) -> Samplers:
    """The same solvers under ComfyUI's names for a Brownian path that is drawn on the GPU; the formula is the same."""
    return {f"{name}_gpu": solver for name, solver in samplers.items()}
