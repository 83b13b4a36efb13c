"""A step of a joint run: all participants take one sigma step together, then their latents are merged."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.engine.guidance import Guidance, PromptKey
from prefect_regional_diffusion.sampling_core.engine.lockstep import RunStep, guided, lockstep
from prefect_regional_diffusion.sampling_core.masks.region_weights import merge
from prefect_regional_diffusion.sampling_core.models.model_key import AdapterKeys
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels
from prefect_regional_diffusion.sampling_core.solvers import Noise, Solver, StepContext
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Mask
from prefect_regional_diffusion.sampling_core.tensors.window import Window


class Crop(NamedTuple):
    """From step `first` (0-based) on, the network sees this window of a participant's latent, guided by `guidance`.

    It contains all cells at which the participant ever has a weight. The solver steps on the whole canvas, with
    predictions of 0 outside of the window, where its results have no weight.
    """

    window: Window
    guidance: Guidance
    first: int = 0
    one_place: bool = False
    """Rows of other windows have forwards of their own."""


class GuidanceChange(NamedTuple):
    """From step `first` (0-based) on, a participant is guided by other prompts or other weights of them."""

    first: int
    guidance: Guidance


@dataclass(frozen=True)
class Participant:
    """The base, a region, or several of them that share their rows: what it asks for, and how it steps."""

    name: str
    guidance: Guidance
    solver: Solver[Any]
    crop: Crop | None = None
    """None: the network always sees the whole canvas."""
    changes: tuple[GuidanceChange, ...] = ()
    """How it is guided later, in the order of steps, each where a phase begins; not together with a crop."""

    @property
    def one_place(self) -> bool:
        """Rows that show a window share forwards with those of the same window alone."""
        return self.crop is not None and self.crop.one_place

    def view(self, step: int) -> tuple[Guidance, Window | None]:
        """How the queries of a step (0-based) are guided, and what the network sees of them."""
        if self.crop is not None and step >= self.crop.first:
            return self.crop.guidance, self.crop.window
        later = (change.guidance for change in reversed(self.changes) if change.first <= step)
        return next(later, self.guidance), None


class PlanPhase(NamedTuple):
    """From step `first` (0-based) on: each participant's weight, None where it takes no part.

    The weights sum to 1 at every latent cell. Participants in `reset_history` begin without multistep history, because
    their last states had another noise than the latent. `drawn` are the base (0) and the regions (from 1) that have a
    share of the canvas, whichever participants they belong to.
    """

    first: int
    weights: tuple[Mask | None, ...]
    reset_history: frozenset[int] = frozenset()
    drawn: frozenset[int] = frozenset({0})


class InpaintConstraint(NamedTuple):
    """Inpainting: a share of `weight` [h, w] of each cell is `clean`, noised with the run's own initial noise."""

    weight: Mask
    clean: Latent
    noise: Latent

    def composited_over(self, x: Latent, level: Level) -> Latent:
        """x at this level, with the constrained cells replaced."""
        return torch.lerp(x, level.alpha * self.clean + level.sigma * self.noise, self.weight)


@dataclass(frozen=True)
class Plan:
    """All that a run is, but for the network: `sigma_schedule` has one level more than there are steps."""

    sigma_schedule: tuple[Level, ...]
    phases: tuple[PlanPhase, ...]
    participants: tuple[Participant, ...]
    levels: ModelLevels
    noise: Noise
    inpaint: InpaintConstraint | None = None

    @property
    def steps(self) -> int:
        return len(self.sigma_schedule) - 1

    @property
    def base_only_steps(self) -> int:
        """How many steps, the first ones, are the base's alone."""
        return next((step for step in range(self.steps) if self.phase(step).drawn != frozenset({0})), self.steps)

    @property
    def prompts(self) -> tuple[PromptKey, ...]:
        """The distinct prompts that the run evaluates, in order of first use."""
        return tuple(dict.fromkeys(key for guidance in self._guidances() for key in guidance.prompt_keys))

    @property
    def adapters(self) -> tuple[tuple[str, AdapterKeys], ...]:
        """What rows have beside their prompts, with the model that it is for."""
        return tuple(dict.fromkeys(model for guidance in self._guidances() for model in guidance.models))

    @property
    def changes(self) -> list[int]:
        """Steps (0-based) at which the active participants, their weights or their windows change; the first is 0."""
        crop_starts = [p.crop.first for p in self.participants if p.crop is not None]
        window_changes = [
            step for step in crop_starts if 0 < step < self.steps and self._windows(step) != self._windows(step - 1)
        ]
        return sorted({*(phase.first for phase in self.phases), *window_changes})

    def phase(self, step: int) -> PlanPhase:
        """The phase that a step (0-based) belongs to."""
        return next(phase for phase in reversed(self.phases) if phase.first <= step)

    def active(self, step: int) -> dict[int, tuple[Participant, Mask]]:
        """The participants of a step (0-based) by index, each with its weight."""
        return {i: (self.participants[i], w) for i, w in enumerate(self.phase(step).weights) if w is not None}

    def _windows(self, step: int) -> dict[int, Window | None]:
        """What the network sees of the latents of those who take part in a step."""
        return {i: p.view(step)[1] for i, (p, _) in self.active(step).items()}

    def _guidances(self) -> Iterator[Guidance]:
        return (p.view(step)[0] for step in range(self.steps) for p, _ in self.active(step).values())

    def with_history(self, step: int) -> Collection[int]:
        """Participants that have multistep history after `step` steps: those of the last step."""
        return self.active(step - 1) if step > 0 else ()

    def interval(self, step: int) -> StepContext:
        """A step (0-based), as solvers see it."""
        return StepContext(self.sigma_schedule, step, self.levels, self.noise)


class State(NamedTuple):
    """A run after `step` steps. Together with its plan it is all that is needed to go on.

    Of those who took no part in the last step, the solvers' states are as at a beginning with `x`.
    """

    step: int
    x: Latent
    solvers: tuple[Any, ...]


def start(plan: Plan, x: Latent, step: int = 0) -> State:
    """A state without multistep history; `x` is the noised latent at that step's level of the schedule."""
    return State(step, x, tuple(p.solver.init(x) for p in plan.participants))


def advance(plan: Plan, state: State) -> RunStep[State]:
    """One step of all active participants."""
    interval, solver_states, active = plan.interval(state.step), _solver_states(plan, state), plan.active(state.step)
    results = yield from lockstep(
        {
            i: guided(p.solver.step(state.x, solver_states[i], interval), *p.view(state.step), one_place=p.one_place)
            for i, (p, _) in active.items()
        }
    )
    return _merge(plan, state, {i: results[i] for i in active})


def _solver_states(plan: Plan, state: State) -> Sequence[Any]:
    """The participants' solver states at the beginning of the next step."""
    phase = plan.phase(state.step)
    if state.step != phase.first:
        return state.solvers
    return [
        p.solver.init(state.x) if i in phase.reset_history else state.solvers[i]
        for i, p in enumerate(plan.participants)
    ]


def _merge(plan: Plan, state: State, results: Mapping[int, tuple[Latent, Any]]) -> State:
    """The state after a step, from the results of the active participants."""
    weights = [weight for _, weight in plan.active(state.step).values()]
    x = merge([latent for latent, _ in results.values()], weights)
    if plan.inpaint is not None:
        x = plan.inpaint.composited_over(x, plan.sigma_schedule[state.step + 1])
    new_state = start(plan, x, state.step + 1)
    # Inactive participants lose their history: multistep methods correct their last step, and the latent is no longer
    # theirs.
    return new_state._replace(
        solvers=tuple(results[i][1] if i in results else new for i, new in enumerate(new_state.solvers))
    )
