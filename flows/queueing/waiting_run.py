"""A run that waits in a work pool, as those see it who decide which one is next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

OWNER = "owner:"
"""How the tag begins that says whose run it is."""

_ADAPTERS = ("loras", "controls", "image_prompts")
_DEFAULT_MODEL: str = RenderJob.model_fields["model"].default


class WaitingRun(NamedTuple):
    """What is known of a run before it starts."""

    id: UUID
    owner: str
    """Whose it is; those without an owner are one owner's together."""
    models: frozenset[str]
    """Names of the models that it loads."""
    adapters: frozenset[str]
    """Names of its LoRAs, ControlNets, T2I-Adapters and IP-Adapters."""
    due: float
    """When it may start at the earliest, in seconds since 1970."""
    priority: int = 1
    """Of its queue: 1 goes before 2."""


def waiting_run(run: FlowRun, priority: int = 1) -> WaitingRun:
    """A scheduled run of one of our deployments."""
    jobs = list(jobs_in(run.parameters or {}))
    due = run.next_scheduled_start_time or run.expected_start_time or run.created
    return WaitingRun(
        id=run.id,
        owner=owner_of(run.tags),
        models=frozenset(name for job in jobs for name in _models(job)),
        adapters=frozenset(name for job in jobs for name in _adapters(job)),
        due=due.timestamp() if due else 0.0,
        priority=priority,
    )


def owner_of(tags: Iterable[str]) -> str:
    """The owner that a run's tags name; empty: nobody in particular."""
    return next((tag.removeprefix(OWNER) for tag in sorted(tags) if tag.startswith(OWNER)), "")


def jobs_in(parameters: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The jobs in a run's parameters, as somebody has sent them: nothing in them has been checked."""
    jobs = parameters.get("jobs")
    for job in [parameters.get("job"), *(jobs if isinstance(jobs, list) else ())]:
        if isinstance(job, Mapping):
            inner = job.get("job")
            yield inner if isinstance(inner, Mapping) else job


def _parts(job: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A job and its regions."""
    yield job
    regions = job.get("regions")
    for region in regions if isinstance(regions, list) else ():
        if isinstance(region, Mapping):
            yield region


def _models(job: Mapping[str, Any]) -> Iterator[str]:
    yield str(job.get("model") or _DEFAULT_MODEL)
    for part in _parts(job):
        refiner = part.get("refiner")
        for source in (part, refiner if isinstance(refiner, Mapping) else {}):
            if isinstance(name := source.get("model"), str) and name:
                yield name


def _adapters(job: Mapping[str, Any]) -> Iterator[str]:
    for part in _parts(job):
        for field in _ADAPTERS:
            entries = part.get(field)
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, Mapping) and isinstance(file := entry.get("file"), str):
                    yield file
