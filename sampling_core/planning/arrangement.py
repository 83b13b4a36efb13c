"""Which prompts share a row: a joint run has one participant for each group of the base and regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from prefect_regional_diffusion.sampling_core.engine.guidance import Guidance
from prefect_regional_diffusion.sampling_core.engine.joint_run import GuidanceChange, PlanPhase
from prefect_regional_diffusion.sampling_core.job.resolved import ParticipantSettings, ResolvedJob
from prefect_regional_diffusion.sampling_core.tensors.types import Mask

Group = tuple[int, ...]
"""The base (0) and regions (from 1) that are one participant, in their order: they differ in their prompts alone."""
_LIKE = "their prompts share one row, each with its weight in the network's attention"


class MemberShare(NamedTuple):
    """A member of a group, and its share [h, w] of the group's rows."""

    settings: ParticipantSettings
    weight: Mask


def groups_of(job: ResolvedJob, guidances: Sequence[Guidance]) -> tuple[Group, ...]:
    """Who has a row together: with attention composition all; with joint composition each alone, unless the job's
    arrangement lets those share a row that differ in nothing but their prompts.

    Who has a window that was asked for has a row for it. `guidances` are of the base and all regions.
    """
    if job.composition == "attention":
        return (tuple(range(len(guidances))),)
    groups: dict[object, list[int]] = {}
    for i, (settings, guidance) in enumerate(zip(job.participants, guidances, strict=True)):
        window = job.regions[i - 1].window if i else None
        alone = job.arrangement != "attention" or not settings.shares_rows or (window is not None and not window.auto)
        alike = (settings.sampler, settings.cfg, guidance.models)
        groups.setdefault(i if alone else alike, []).append(i)
    return tuple(map(tuple, groups.values()))


def without_windows(job: ResolvedJob, groups: Sequence[Group]) -> ResolvedJob:
    """The job without the windows of regions that share a row, which is of the whole canvas."""
    sharing = {i for group in groups if len(group) > 1 for i in group}
    regions = (region._replace(window=None) if i in sharing else region for i, region in enumerate(job.regions, 1))
    return replace(job, regions=tuple(regions))


def told_of(groups: Sequence[Group], names: Sequence[str]) -> tuple[str, ...]:
    """One sentence for each group of several; `names` are of the base and all regions."""
    return tuple(f"{', '.join(names[i] for i in group)}: {_LIKE}" for group in groups if len(group) > 1)


def by_group(phase: PlanPhase, groups: Sequence[Group]) -> PlanPhase:
    """A phase of the base and all regions as one of their groups, which have the sums of their weights."""
    return phase._replace(weights=tuple(_group_weight(group, phase.weights) for group in groups))


def _group_weight(group: Group, weights: Sequence[Mask | None]) -> Mask | None:
    present = [weight for i in group if (weight := weights[i]) is not None]
    if len(present) < 2:
        return present[0] if present else None
    if len(group) == len(weights):
        return torch.ones_like(present[0])
    return torch.stack(present).sum(dim=0).clamp(max=1)


def guidance_changes(
    group: Group,
    phases: Sequence[PlanPhase],
    participants: Sequence[ParticipantSettings],
    guided: Callable[[tuple[MemberShare, ...]], Guidance],
) -> tuple[GuidanceChange, ...]:
    """How a group is guided in each phase in which it takes part.

    `phases` are of the base and all regions, whose settings are `participants`; `guided` is the guidance of members
    that share a row.
    """
    rows = [(phase.first, _shares(group, phase.weights, participants)) for phase in phases]
    return tuple(GuidanceChange(first, guided(shares)) for first, shares in rows if shares)


def _shares(
    group: Group, weights: Sequence[Mask | None], participants: Sequence[ParticipantSettings]
) -> tuple[MemberShare, ...]:
    """The members of a group that take part, and their weights, whose sum is more than 0 at every cell.

    Cells in which the group has none go to the base if it is a member that takes part, else to all by their areas: the
    network evaluates them, and the result has no weight there.
    """
    present = {i: weight for i in group if (weight := weights[i]) is not None}
    if not present:
        return ()
    total = torch.stack(list(present.values())).sum(dim=0)
    beyond = {i: float(i == 0) if 0 in present else float(weight.mean()) for i, weight in present.items()}
    return tuple(
        MemberShare(participants[i], torch.where(total > 0, weight, beyond[i])) for i, weight in present.items()
    )
