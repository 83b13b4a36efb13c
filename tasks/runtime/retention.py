"""What stays in a store: which states a finished run keeps, and what can be listed and thrown away later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from prefect_regional_diffusion.sampling_core.engine.cache_keys import SegmentKey, state_name
from prefect_regional_diffusion.tasks.machine.settings import Keep
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.rendered_images import record_of
from prefect_regional_diffusion.tasks.storage import keys
from prefect_regional_diffusion.tasks.storage.keys import Key, RecordKey, TensorKey
from prefect_regional_diffusion.tasks.storage.parallel_io import map_concurrently
from prefect_regional_diffusion.tasks.storage.records import Digest, Record, read_record
from prefect_regional_diffusion.tasks.storage.store import Store, Stored

DAY = 24 * 3600.0

_MOST_STEPS = 10**6
_Moment = Annotated[float, Field(ge=0, lt=253_402_300_800, allow_inf_nan=False)]
"""Unix seconds, before the year 10,000: what calendars can tell."""


def kind(key: Key | None) -> str:
    """What an object is: latents, masks, pictures, probes, prompts, runs, starts; or other: not a store's own."""
    if key is None:
        return "other"
    folder, slash, _ = key.partition("/")
    return folder if slash else "probes"


class RunRecord(Record):
    """What the store knows of a run: written when it begins, and again when it is finished."""

    name: str = Field(max_length=200)
    job_hash: Digest
    steps: int = Field(ge=0, le=_MOST_STEPS)
    segments: tuple[SegmentKey, ...] = Field(min_length=1, max_length=10_000)
    begun: _Moment
    finished: _Moment | None = None

    @model_validator(mode="after")
    def _told_in_order(self) -> Self:
        firsts = [segment.first for segment in self.segments]
        if firsts[0] != 0 or firsts[-1] > self.steps or any(one >= other for one, other in pairwise(firsts)):
            raise ValueError("segments that do not follow each other")
        if len({segment.name for segment in self.segments}) < len(self.segments):
            raise ValueError("segments of one name")
        for segment in self.segments:
            keys.states(segment.name)
        return self

    def keeps(self, step: int, segment: range, keep: Keep) -> bool:
        """Whether the run, once it is finished, keeps the state after a step of a segment by a policy."""
        match keep:
            case "all":
                return True
            case "final":
                return step == self.steps
            case "branch_points":
                return step == segment[-1]
            case int():
                return step == self.steps or step % keep == 0

    def stretches(self) -> Iterator[tuple[str, range]]:
        """The names of the segments, with the steps after which their states are."""
        ends = [*(segment.first for segment in self.segments[1:]), self.steps]
        for segment, end in zip(self.segments, ends, strict=True):
            yield segment.name, range(segment.first + 1, end + 1)

    def states(self, keep: Keep, there: Mapping[str, Iterable[int]]) -> set[TensorKey]:
        """Keys of the states that the run keeps once it is finished, of those that are `there`: steps by segment."""
        return {
            keys.state(f"{name}/{step:05d}")
            for name, steps in self.stretches()
            for step in there.get(name, ())
            if step in steps and self.keeps(step, steps, keep)
        }

    def state(self, step: int) -> TensorKey:
        """Key of the state after a step."""
        return keys.state(state_name(self.segments, step))


def begin(run: RenderContext, name: str) -> RunRecord:
    """Tell the store of a run. One that is told already stays as it is."""
    known = RunRecord(
        name=name, job_hash=run.job_hash, steps=run.sampling_run.steps, segments=run.segments, begun=time.time()
    )
    if run_record_of(run) is None:
        run.store.write_json(run.key, known.model_dump(mode="json"))
    return known


def run_record_of(run: RenderContext) -> RunRecord | None:
    """What the store knows of a run; None if nothing, or what is told of another one."""
    known = read_record(run.store, run.key, RunRecord)
    own = (run.job_hash, run.sampling_run.steps, run.segments)
    if known is not None and (known.job_hash, known.steps, known.segments) != own:
        run.store.tell_unfit(run.key, ValueError("it tells of another run"))
        return None
    return known


async def finish(finished: Mapping[RenderContext, RunRecord], *keep: Keep) -> None:
    """Tell the store that runs, all of one store, are finished, and remove the states that no policy keeps for any."""
    if not finished:
        return
    now, store = time.time(), next(iter(finished)).store
    closed = {run.key: known.model_copy(update={"finished": now}) for run, known in finished.items()}
    writing = map_concurrently(lambda item: store.write_json(item[0], item[1].model_dump(mode="json")), closed.items())
    await asyncio.gather(writing, _forget(store, list(finished.values()), "all", keep))


async def forget_branch_points(store: Store, job_hashes: Iterable[str], keep: Keep) -> None:
    """Remove the states at branch points where the policy keeps none, once all jobs that go on from them are drawn."""
    if keep in ("branch_points", "all"):
        return
    drawn = await map_concurrently(lambda job_hash: record_of(store, job_hash), job_hashes)
    told = [(keys.run_of(record.run), record.job_hash) for record in drawn if record is not None]
    known = await map_concurrently(lambda key: read_record(store, key, RunRecord), [key for key, _ in told])
    # Only what is told of these jobs: a record may name any run.
    own = [run for run, (_, job_hash) in zip(known, told, strict=True) if run is not None and run.job_hash == job_hash]
    await _forget(store, [run for run in own if run.finished is not None], "branch_points", [keep])


async def _forget(store: Store, runs: Sequence[RunRecord], some: Keep, keep: Sequence[Keep]) -> None:
    """Remove those states of runs that the policy `some` names, and that none of `keep` names for any of them.

    Only folders are listed in which there may be such states.
    """

    def may_go(run: RunRecord, segment: range) -> bool:
        steps = segment[-1:] if some == "branch_points" else reversed(segment)
        return any(not any(run.keeps(step, segment, policy) for policy in keep) for step in steps)

    folders = {name for run in runs for name, segment in run.stretches() if may_go(run, segment)}
    listed = await map_concurrently(lambda name: store.objects(keys.states(name)), folders)
    there = _steps(found.key for objects in listed for found in objects)
    gone = _states(runs, there, some) - _states(runs, there, *keep)
    await map_concurrently(store.remove, ([key] for key in gone))


def _states(runs: Iterable[RunRecord], there: Mapping[str, Iterable[int]], *keep: Keep) -> set[TensorKey]:
    """What policies keep for runs: what one could do without, another may need."""
    return set[TensorKey]().union(*(run.states(policy, there) for run in runs for policy in keep))


class Listed(NamedTuple):
    """A run with the states of it that a store has; some may be other runs' as well."""

    key: RecordKey
    run: RunRecord
    states: int
    size: int


def runs(store: Store) -> list[Listed]:
    """All runs that a store knows of, the oldest first."""
    sizes = {found.key: found.size for found in store.objects(keys.ALL_STATES)}
    there, listed = _steps(sizes), list[Listed]()
    for key, run in _known(store):
        states = [state for state in run.states("all", there) if state in sizes]
        listed.append(Listed(key, run, len(states), sum(sizes[state] for state in states)))
    return sorted(listed, key=lambda entry: entry.run.begun)


def sizes(store: Store) -> dict[str, tuple[int, int]]:
    """Number of objects and their bytes, by kind."""
    found: dict[str, tuple[int, int]] = {}
    for stored in store.objects(keys.EVERYTHING):
        number, size = found.get(kind(stored.key), (0, 0))
        found[kind(stored.key)] = number + 1, size + stored.size
    return dict(sorted(found.items()))


def to_prune(store: Store, keep: Keep | Literal["none"], older_than: float) -> list[Stored]:
    """What can go. Of runs finished more than `older_than` seconds ago: the states that `keep` does not name.

    Of unfinished runs, and of nobody's states, what was last written longer ago than that. `none` keeps nothing of
    such runs, nor what can be made again for later ones: masks, prompts, init images, and pictures.
    What is not the store's own stays, whatever it is.
    """
    now = time.time()
    objects = {found.key: found for found in store.objects(keys.EVERYTHING) if found.key is not None}
    there = _steps(objects)
    wanted: set[Key] = set()
    for key, run in _known(store):
        states = run.states("all", there) & objects.keys()
        touched = run.finished or max((objects[state].written for state in states), default=run.begun)
        if now - touched <= older_than:
            wanted |= states | {key}
        elif keep != "none":
            wanted |= ({key} | states & run.states(keep, there)) if run.finished else {key}
    old = [found for key, found in objects.items() if key not in wanted and now - found.written > older_than]
    return old if keep == "none" else [found for found in old if kind(found.key) == "latents"]


def _steps(found: Iterable[Key | None]) -> dict[str, set[int]]:
    """Steps of the states among some objects, by segment."""
    there: dict[str, set[int]] = {}
    for key in found:
        if isinstance(key, TensorKey) and kind(key) == "latents":
            _, segment, step = key.split("/")
            there.setdefault(segment, set()).add(int(step))
    return there


def _known(store: Store) -> list[tuple[RecordKey, RunRecord]]:
    """The runs that a store knows of; one that cannot be read counts as absent."""
    told = [found.key for found in store.objects(keys.ALL_RUNS) if isinstance(found.key, RecordKey)]
    read = ((key, read_record(store, key, RunRecord)) for key in told)
    return [(key, run) for key, run in read if run is not None]
