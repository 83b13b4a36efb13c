"""What stays in a store: which states a finished run keeps, and what can be listed and thrown away later."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from sampling_core.history import Named, state_name
from tasks.at_once import at_once
from tasks.pictures import record_of
from tasks.run import Run
from tasks.settings import Keep
from tasks.store import Store, Stored

DAY = 24 * 3600.0

_HASH = "[0-9a-f]{64}"
_OURS = re.compile(
    rf"(latents/{_HASH}/\.?\d+\.safetensors|(masks|prompts|starts)/\.?{_HASH}\.safetensors"
    rf"|runs/\.?{_HASH}\.json|pictures/\.?{_HASH}\.(json|png)|\.?probe-[0-9a-f]{{32}})(\.[0-9a-f]{{32}}\.part)?"
)
"""All keys that are ever written, and what a writer that was killed left of one (`.name.….part`)."""


def kind(key: str) -> str:
    """What an object of a store is: latents, masks, pictures, probes, prompts, runs, starts; or other: not a store's.

    Where a store lies at the top of a bucket, or pictures below a store, there are files of other people.
    """
    if _OURS.fullmatch(key) is None:
        return "other"
    folder, slash, _ = key.partition("/")
    return folder if slash else "probes"


class Known(BaseModel):
    """What the store knows of a run: written when it begins, and again when it is finished."""

    model_config = ConfigDict(frozen=True)
    name: str
    job_hash: str
    steps: int
    chapters: tuple[Named, ...]
    begun: float
    """Unix seconds."""
    finished: float | None = None

    def states(self, keep: Keep) -> set[str]:
        """Object keys of the states that a finished run keeps."""
        ends = [chapter.first for chapter in self.chapters[1:]]
        match keep:
            case "all":
                steps: Iterable[int] = range(1, self.steps + 1)
            case "final":
                steps = [self.steps]
            case "forks":
                steps = [*ends, self.steps]
            case int():
                steps = [*range(keep, self.steps + 1, keep), self.steps]
        return {self.state(step) for step in steps if step > 0}

    def state(self, step: int) -> str:
        """Object key of the state after a step."""
        return f"latents/{state_name(self.chapters, step)}.safetensors"


def begin(run: Run, name: str) -> Known:
    """Tell the store of a run. One that is told already stays as it is."""
    known = Known(
        name=name, job_hash=run.job_hash, steps=run.composition.steps, chapters=run.chapters, begun=time.time()
    )
    if run.store.read_json(run.key) is None:
        run.store.write_json(run.key, known.model_dump(mode="json"))
    return known


def known_of(run: Run) -> Known | None:
    """What the store knows of a run; None if nothing, or nothing that can be read."""
    return _read(run.store, run.key)


def _read(store: Store, key: str) -> Known | None:
    try:
        return Known.model_validate(store.read_json(key))
    except ValidationError:
        return None


async def finish(finished: Mapping[Run, Known], *keep: Keep) -> None:
    """Tell the store that runs, all of one store, are finished, and remove the states that no policy keeps for any."""
    if not finished:
        return
    now, store = time.time(), next(iter(finished)).store
    closed = {run.key: known.model_copy(update={"finished": now}) for run, known in finished.items()}
    writing = at_once(lambda item: store.write_json(item[0], item[1].model_dump(mode="json")), closed.items())
    await asyncio.gather(writing, _forget(store, _states(finished.values(), "all") - _states(finished.values(), *keep)))


async def forget_forks(store: Store, job_hashes: Iterable[str], keep: Keep) -> None:
    """Remove the states at forks where the policy keeps none, once all jobs that go on from them are drawn."""
    if keep in ("forks", "all"):
        return
    drawn = await at_once(lambda job_hash: record_of(store, job_hash), job_hashes)
    known = await at_once(lambda key: _read(store, key), [record.run for record in drawn if record is not None])
    finished = [run for run in known if run is not None and run.finished is not None]
    await _forget(store, _states(finished, "forks") - _states(finished, keep))


def _states(runs: Iterable[Known], *keep: Keep) -> set[str]:
    """What policies keep for runs: what one could do without, another may need."""
    return set[str]().union(*(run.states(policy) for run in runs for policy in keep))


async def _forget(store: Store, needless: set[str]) -> None:
    if needless:
        folders = {key.rpartition("/")[0] for key in needless}
        listed = await at_once(store.objects, folders)
        stored = {found.key for folder in listed for found in folder}
        await at_once(store.remove, ([key] for key in needless & stored))


class Listed(NamedTuple):
    """A run with the states of it that a store has; some may be other runs' as well."""

    key: str
    run: Known
    states: int
    size: int


def runs(store: Store) -> list[Listed]:
    """All runs that a store knows of, the oldest first."""
    sizes = {found.key: found.size for found in store.objects("latents")}
    listed: list[Listed] = []
    for key, run in _known(store):
        there = run.states("all") & sizes.keys()
        listed.append(Listed(key, run, len(there), sum(sizes[state] for state in there)))
    return sorted(listed, key=lambda entry: entry.run.begun)


def sizes(store: Store) -> dict[str, tuple[int, int]]:
    """Number of objects and their bytes, by kind."""
    found: dict[str, tuple[int, int]] = {}
    for stored in store.objects(""):
        number, size = found.get(kind(stored.key), (0, 0))
        found[kind(stored.key)] = number + 1, size + stored.size
    return dict(sorted(found.items()))


def to_prune(store: Store, keep: Keep | Literal["none"], older_than: float) -> list[Stored]:
    """What can go. Of runs finished more than `older_than` seconds ago: the states that `keep` does not name.

    Of unfinished runs, and of nobody's states, what was last written longer ago than that. `none` keeps nothing of
    such runs, nor what can be made again for later ones: masks, prompts, start images, and the pictures that grids
    are merged from. What is not the store's own stays, whatever it is.
    """
    now = time.time()
    objects = [found for found in store.objects("") if kind(found.key) != "other"]
    last = {found.key: found.written for found in objects}
    wanted: set[str] = set()
    for key, run in _known(store):
        states = run.states("all") & last.keys()
        touched = run.finished or max((last[state] for state in states), default=run.begun)
        if now - touched <= older_than:
            wanted |= states | {key}
        elif keep != "none":
            wanted |= ({key} | states & run.states(keep)) if run.finished else {key}
    old = [found for found in objects if found.key not in wanted and now - found.written > older_than]
    return old if keep == "none" else [found for found in old if kind(found.key) == "latents"]


def _known(store: Store) -> list[tuple[str, Known]]:
    """The runs that a store knows of, with their object keys; one that cannot be read counts as absent."""
    found: list[tuple[str, Known]] = []
    for stored in store.objects("runs"):
        with suppress(ValidationError):
            found.append((stored.key, Known.model_validate(store.read_json(stored.key.removesuffix(".json")))))
    return found
