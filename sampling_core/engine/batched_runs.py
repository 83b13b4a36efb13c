"""Several runs that step together: what one process draws at once shares its forwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from prefect_regional_diffusion.sampling_core.engine.batching import Count, Networks
from prefect_regional_diffusion.sampling_core.engine.joint_run import advance_all
from prefect_regional_diffusion.sampling_core.engine.sampling_run import Composition, Joint


class Member(NamedTuple):
    """A run in a state that is not its last, and what the state after its next step is called.

    States with one name are equal, whichever run computes them; in other company, up to the rounding of a forward.
    """

    run: Composition[Any]
    state: Any
    next_name: str


def advance_together(members: Sequence[Member], using: Networks) -> tuple[list[Any], Count]:
    """One step of every member, and what they cost together. Members whose next states have one name are one run.

    Runs of joint composition share their forwards; a sequential one steps alone.
    """
    first: dict[str, Member] = {}
    for member in members:
        first.setdefault(member.next_name, member)
    joint = {name: (m.run.plan, m.state) for name, m in first.items() if isinstance(m.run, Joint)}
    states, total = advance_all(list(joint.values()), using)
    reached: dict[str, Any] = dict(zip(joint, states, strict=True))
    for name, (run, state, _) in first.items():
        if name not in reached:
            for after, count in run.iterate(state, using, until=run.done(state) + 1):
                reached[name], total = after, total.plus(count)
    return _given(members, first, reached), total


def _given(members: Sequence[Member], first: dict[str, Member], reached: dict[str, Any]) -> list[Any]:
    """Each member's own state: runs that begin alike may go on with others, whose solvers their states hold too."""
    names = [member.next_name for member in members]
    written = {name: first[name].run.to_tensors(reached[name]) for name in first if names.count(name) > 1}
    return [
        member.run.from_tensors(written[name]) if name in written else reached[name]
        for name, member in zip(names, members, strict=True)
    ]
