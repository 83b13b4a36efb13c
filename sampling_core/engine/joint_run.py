"""The only loop: all participants take one sigma step together, then their latents are merged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from prefect_regional_diffusion.sampling_core.engine.batching import Count, Networks, evaluate
from prefect_regional_diffusion.sampling_core.engine.guidance import Guidance, PromptKey
from prefect_regional_diffusion.sampling_core.masks.region_weights import merge
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels
from prefect_regional_diffusion.sampling_core.solvers import Interval, Noise, Prediction, Query, Solver, Step
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Mask

K = TypeVar("K")


@dataclass(frozen=True)
class Participant:
    """The base or a region: what it asks for, and how it steps."""

    name: str
    guidance: Guidance
    solver: Solver[Any]


class Stage(NamedTuple):
    """From step `first` (0-based) on: each participant's weight, None where it takes no part.

    The weights of a stage sum to 1 at every latent cell. Those who `forget` begin the stage without a memory, because
    what they remember has another noise than the latent.
    """

    first: int
    weights: tuple[Mask | None, ...]
    forget: frozenset[int] = frozenset()


class Known(NamedTuple):
    """Cells that are not drawn but known: `weight` of them is `clean`, with the run's own initial noise."""

    weight: Mask
    clean: Latent
    noise: Latent

    def laid_over(self, x: Latent, level: Level) -> Latent:
        """x at this level, with what is known put back."""
        return torch.lerp(x, level.alpha * self.clean + level.sigma * self.noise, self.weight)


@dataclass(frozen=True)
class Plan:
    """All that a run is, but for the network: `ladder` has one level more than there are steps."""

    ladder: tuple[Level, ...]
    stages: tuple[Stage, ...]
    participants: tuple[Participant, ...]
    levels: ModelLevels
    noise: Noise
    known: Known | None = None

    @property
    def steps(self) -> int:
        return len(self.ladder) - 1

    @property
    def base_only_steps(self) -> int:
        """How many steps, the first ones, are the first participant's alone."""
        return next((step for step in range(self.steps) if set(self.active(step)) != {0}), self.steps)

    @property
    def prompts(self) -> tuple[PromptKey, ...]:
        """The distinct prompts that the run evaluates, in order of first use."""
        used = (p.guidance.prompt_keys for step in range(self.steps) for p, _ in self.active(step).values())
        return tuple(dict.fromkeys(words for several in used for words in several))

    def stage(self, step: int) -> Stage:
        """The stage that a step (0-based) belongs to."""
        return next(stage for stage in reversed(self.stages) if stage.first <= step)

    def active(self, step: int) -> dict[int, tuple[Participant, Mask]]:
        """Who takes part in a step (0-based), by index, and with which weight."""
        return {i: (self.participants[i], w) for i, w in enumerate(self.stage(step).weights) if w is not None}

    def remembering(self, step: int) -> Collection[int]:
        """Who remembers something after `step` steps: those who took part in the last one."""
        return self.active(step - 1) if step > 0 else ()

    def interval(self, step: int) -> Interval:
        """A step (0-based), as solvers see it."""
        return Interval(self.ladder, step, self.levels, self.noise)


class State(NamedTuple):
    """A run after `step` steps. Together with its plan it is all that is needed to go on.

    Of those who took no part in the last step, the solvers' states are as at a beginning with `x`.
    """

    step: int
    x: Latent
    solvers: tuple[Any, ...]


def start(plan: Plan, x: Latent, step: int = 0) -> State:
    """A state in which nobody remembers anything; `x` is the noised latent at that step's level of the ladder."""
    return State(step, x, tuple(p.solver.init(x) for p in plan.participants))


def advance(plan: Plan, state: State, using: Networks) -> tuple[State, Count]:
    """One step of everyone who takes part, and what it cost."""
    (state,), count = advance_all([(plan, state)], using)
    return state, count


def advance_all(runs: Sequence[tuple[Plan, State]], using: Networks) -> tuple[list[State], Count]:
    """One step of each of several runs that are not finished, all in the same forwards, and what they cost together.

    Runs have nothing in common but the network: they may be at different steps, of different shapes and models.
    """
    steps: dict[tuple[int, int], Step[Any]] = {}
    for number, (plan, state) in enumerate(runs):
        at, remembered = plan.interval(state.step), _remembered(plan, state)
        steps |= {
            (number, i): p.solver.step(state.x, remembered[i], at) for i, (p, _) in plan.active(state.step).items()
        }
    count = Count()

    def answer(asked: dict[tuple[int, int], Query]) -> list[Prediction]:
        nonlocal count
        queries = [(query, runs[number][0].participants[i].guidance) for (number, i), query in asked.items()]
        answers, cost = evaluate(queries, using)
        count = count.plus(cost)
        return answers

    moved = lockstep(steps, answer)
    return [
        _merged(plan, state, {i: moved[number, i] for i in plan.active(state.step)})
        for number, (plan, state) in enumerate(runs)
    ], count


def _remembered(plan: Plan, state: State) -> Sequence[Any]:
    """What the participants know of earlier steps when the next one begins."""
    first, _, forget = plan.stage(state.step)
    if state.step != first:
        return state.solvers
    return [p.solver.init(state.x) if i in forget else state.solvers[i] for i, p in enumerate(plan.participants)]


def _merged(plan: Plan, state: State, moved: Mapping[int, tuple[Latent, Any]]) -> State:
    """The state after a step, from what the participants made of it."""
    weights = [weight for _, weight in plan.active(state.step).values()]
    x = merge([latent for latent, _ in moved.values()], weights)
    if plan.known is not None:
        x = plan.known.laid_over(x, plan.ladder[state.step + 1])
    reached = start(plan, x, state.step + 1)
    # Who is away forgets: multistep methods correct their last step, and the latent is no longer theirs.
    return reached._replace(solvers=tuple(moved[i][1] if i in moved else new for i, new in enumerate(reached.solvers)))


def lockstep(
    steps: Mapping[K, Step[Any]], answer: Callable[[dict[K, Query]], Sequence[Prediction]]
) -> dict[K, tuple[Latent, Any]]:
    """Drive all steps at once: in each round, the open queries are answered together."""
    done: dict[K, tuple[Latent, Any]] = {}
    reply: dict[K, Prediction | None] = dict.fromkeys(steps)
    while reply:
        asked: dict[K, Query] = {}
        for i, prediction in reply.items():
            try:
                # A generator's first `send` must be None: it starts it.
                asked[i] = steps[i].send(prediction)  # pyright: ignore[reportArgumentType]
            except StopIteration as stop:
                done[i] = stop.value
        reply = dict(zip(asked, answer(asked), strict=True)) if asked else {}
    return done


def iterate(plan: Plan, state: State, using: Networks, until: int | None = None) -> Iterator[tuple[State, Count]]:
    """Every state after `state` up to step `until` (default: the end), with what each step cost."""
    for _ in range(state.step, plan.steps if until is None else until):
        state, count = advance(plan, state, using)
        yield state, count
