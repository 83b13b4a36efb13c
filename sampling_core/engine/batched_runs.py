"""The driver: takes steps of one run or of several, and evaluates their requests in the same forwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext, evaluate
from prefect_regional_diffusion.sampling_core.engine.lockstep import RunStep, lockstep
from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun

K = TypeVar("K")
S = TypeVar("S")


class Member(NamedTuple):
    """A run in a state that is not its last, and the name of the state after its next step.

    States with one name are equal, whichever run computes them; with other rows in a forward, up to its rounding.
    """

    run: SamplingRun[Any]
    state: Any
    next_name: str


def advance_together(members: Sequence[Member], context: EvaluationContext) -> tuple[list[Any], Count]:
    """One step of every member, and what they cost together. Members whose next states have one name are one run.

    Runs have nothing in common but the networks: they may be at different steps, of different shapes and models.
    """
    first: dict[str, Member] = {}
    for member in members:
        first.setdefault(member.next_name, member)
    next_states, cost = advance_runs({name: run.step(state) for name, (run, state, _) in first.items()}, context)
    return _member_states(members, first, next_states), cost


def iterate(
    run: SamplingRun[S], state: S, context: EvaluationContext, until: int | None = None
) -> Iterator[tuple[S, Count]]:
    """Every state of one run after `state` up to step `until` (default: the end), with what each step cost."""
    for _ in range(run.steps_done(state), run.steps if until is None else until):
        next_states, cost = advance_runs({0: run.step(state)}, context)
        state = next_states[0]
        yield state, cost


def advance_runs(steps: Mapping[K, RunStep[S]], context: EvaluationContext) -> tuple[dict[K, S], Count]:
    """The states after steps of several runs, by their keys, and what they cost together."""
    rounds, total = lockstep(steps), Count()
    try:
        requests = next(rounds)
        while True:
            answers, cost = evaluate([request for of_run in requests.values() for request in of_run.values()], context)
            total, remaining = total.plus(cost), iter(answers)
            requests = rounds.send({key: {i: next(remaining) for i in of_run} for key, of_run in requests.items()})
    except StopIteration as stop:
        return stop.value, total


def _member_states(members: Sequence[Member], first: dict[str, Member], next_states: dict[str, Any]) -> list[Any]:
    """Each member's own state: runs that begin alike may go on with others, whose solvers their states hold too."""
    names = [member.next_name for member in members]
    tensors = {name: first[name].run.to_tensors(next_states[name]) for name in first if names.count(name) > 1}
    return [
        member.run.from_tensors(tensors[name]) if name in tensors else next_states[name]
        for name, member in zip(names, members, strict=True)
    ]
