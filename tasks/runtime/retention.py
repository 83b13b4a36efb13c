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
"""Unix seconds, before the year 10,000, which `datetime` can represent."""


def kind(key: Key | None) -> str:
    """An object's kind: latents, masks, pictures, probes, prompts, runs, starts; or other: not a store's own."""
    if key is None:
        return "other"
    folder, slash, _ = key.partition("/")
    return folder if slash else "probes"


class RunRecord(Record):
    """The store's record of a run: written when it begins, and again when it is finished."""

    name: str = Field(max_length=200)
    job_hash: Digest
    steps: int = Field(ge=0, le=_MOST_STEPS)
    segments: tuple[SegmentKey, ...] = Field(min_length=1, max_length=10_000)
    begun: _Moment
    finished: _Moment | None = None

    @model_validator(mode="after")
    def _segments_are_in_order(self) -> Self:
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

    def segment_steps(self) -> Iterator[tuple[str, range]]:
        """The names of the segments, with the steps after which their states are."""
        ends = [*(segment.first for segment in self.segments[1:]), self.steps]
        for segment, end in zip(self.segments, ends, strict=True):
            yield segment.name, range(segment.first + 1, end + 1)

    def states(self, keep: Keep, stored_steps: Mapping[str, Iterable[int]]) -> set[TensorKey]:
        """Keys of the states that the run keeps once it is finished, of those in `stored_steps`: steps by segment."""
        return {
            keys.state(f"{name}/{step:05d}")
            for name, steps in self.segment_steps()
            for step in stored_steps.get(name, ())
            if step in steps and self.keeps(step, steps, keep)
        }

    def state(self, step: int) -> TensorKey:
        """Key of the state after a step."""
        return keys.state(state_name(self.segments, step))


def begin(run: RenderContext, name: str) -> RunRecord:
    """Write the record of a run. An existing one stays as it is."""
    record = RunRecord(
        name=name, job_hash=run.job_hash, steps=run.sampling_run.steps, segments=run.segments, begun=time.time()
    )
    if run_record_of(run) is None:
        run.store.write_json(run.key, record.model_dump(mode="json"))
    return record


def run_record_of(run: RenderContext) -> RunRecord | None:
    """The store's record of a run; None without one, or if it is of another run."""
    record = read_record(run.store, run.key, RunRecord)
    expected = (run.job_hash, run.sampling_run.steps, run.segments)
    if record is not None and (record.job_hash, record.steps, record.segments) != expected:
        run.store.tell_unfit(run.key, ValueError("it tells of another run"))
        return None
    return record


async def finish(finished: Mapping[RenderContext, RunRecord], *keep: Keep) -> None:
    """Write that runs, all of one store, are finished, and remove the states that no policy keeps for any of them."""
    if not finished:
        return
    now, store = time.time(), next(iter(finished)).store
    finished_records = {run.key: record.model_copy(update={"finished": now}) for run, record in finished.items()}
    writes = map_concurrently(
        lambda item: store.write_json(item[0], item[1].model_dump(mode="json")), finished_records.items()
    )
    await asyncio.gather(writes, _remove_states(store, list(finished.values()), "all", keep))


async def forget_branch_points(store: Store, job_hashes: Iterable[str], keep: Keep) -> None:
    """Remove the states at branch points where the policy keeps none, once all jobs that go on from them are drawn."""
    if keep in ("branch_points", "all"):
        return
    render_records = await map_concurrently(lambda job_hash: record_of(store, job_hash), job_hashes)
    run_keys = [(keys.run_of(record.run), record.job_hash) for record in render_records if record is not None]
    run_records = await map_concurrently(lambda key: read_record(store, key, RunRecord), [key for key, _ in run_keys])
    # Only runs of these jobs: a record may name any run.
    runs_of_jobs = [
        run
        for run, (_, job_hash) in zip(run_records, run_keys, strict=True)
        if run is not None and run.job_hash == job_hash
    ]
    await _remove_states(store, [run for run in runs_of_jobs if run.finished is not None], "branch_points", [keep])


async def _remove_states(store: Store, runs: Sequence[RunRecord], candidates: Keep, keep: Sequence[Keep]) -> None:
    """Remove the states of runs that the policy `candidates` names, and that none of `keep` names for any of them.

    Only folders are listed in which there may be such states.
    """

    def may_go(run: RunRecord, segment: range) -> bool:
        steps = segment[-1:] if candidates == "branch_points" else reversed(segment)
        return any(not any(run.keeps(step, segment, policy) for policy in keep) for step in steps)

    folders = {name for run in runs for name, segment in run.segment_steps() if may_go(run, segment)}
    listings = await map_concurrently(lambda name: store.objects(keys.states(name)), folders)
    stored_steps = _steps_by_segment(entry.key for objects in listings for entry in objects)
    removable = _kept_states(runs, stored_steps, candidates) - _kept_states(runs, stored_steps, *keep)
    await map_concurrently(store.remove, ([key] for key in removable))


def _kept_states(runs: Iterable[RunRecord], stored_steps: Mapping[str, Iterable[int]], *keep: Keep) -> set[TensorKey]:
    """The states that policies keep for any of the runs: a state may be in several runs."""
    return set[TensorKey]().union(*(run.states(policy, stored_steps) for run in runs for policy in keep))


class ListedRun(NamedTuple):
    """A run with the states of it that a store has; some may be other runs' as well."""

    key: RecordKey
    run: RunRecord
    states: int
    size: int


def runs(store: Store) -> list[ListedRun]:
    """All runs that a store knows of, the oldest first."""
    sizes = {entry.key: entry.size for entry in store.objects(keys.ALL_STATES)}
    stored_steps, entries = _steps_by_segment(sizes), list[ListedRun]()
    for key, run in _run_records(store):
        states = [state for state in run.states("all", stored_steps) if state in sizes]
        entries.append(ListedRun(key, run, len(states), sum(sizes[state] for state in states)))
    return sorted(entries, key=lambda listed_run: listed_run.run.begun)


def sizes(store: Store) -> dict[str, tuple[int, int]]:
    """Number of objects and their bytes, by kind."""
    totals: dict[str, tuple[int, int]] = {}
    for entry in store.objects(keys.EVERYTHING):
        number, size = totals.get(kind(entry.key), (0, 0))
        totals[kind(entry.key)] = number + 1, size + entry.size
    return dict(sorted(totals.items()))


def to_prune(store: Store, keep: Keep | Literal["none"], older_than: float) -> list[Stored]:
    """Removable objects. Of runs finished more than `older_than` seconds ago: the states that `keep` does not name.

    Of unfinished runs, and of states without a run, what was last written longer ago than that. `none` keeps nothing of
    such runs, nor what can be made again for later ones: masks, prompts, init images, and pictures. What is not the
    store's own stays, whatever it is.
    """
    now = time.time()
    objects = {entry.key: entry for entry in store.objects(keys.EVERYTHING) if entry.key is not None}
    stored_steps = _steps_by_segment(objects)
    kept_keys: set[Key] = set()
    for key, run in _run_records(store):
        states = run.states("all", stored_steps) & objects.keys()
        last_use = run.finished or max((objects[state].written for state in states), default=run.begun)
        if now - last_use <= older_than:
            kept_keys |= states | {key}
        elif keep != "none":
            kept_keys |= ({key} | states & run.states(keep, stored_steps)) if run.finished else {key}
    removable = [entry for key, entry in objects.items() if key not in kept_keys and now - entry.written > older_than]
    return removable if keep == "none" else [entry for entry in removable if kind(entry.key) == "latents"]


def _steps_by_segment(object_keys: Iterable[Key | None]) -> dict[str, set[int]]:
    """Steps of the states among some keys, by segment."""
    by_segment: dict[str, set[int]] = {}
    for key in object_keys:
        if isinstance(key, TensorKey) and kind(key) == "latents":
            _, segment, step = key.split("/")
            by_segment.setdefault(segment, set()).add(int(step))
    return by_segment


def _run_records(store: Store) -> list[tuple[RecordKey, RunRecord]]:
    """The runs that a store knows of; one that cannot be read counts as absent."""
    run_keys = [entry.key for entry in store.objects(keys.ALL_RUNS) if isinstance(entry.key, RecordKey)]
    records = ((key, read_record(store, key, RunRecord)) for key in run_keys)
    return [(key, run) for key, run in records if run is not None]
