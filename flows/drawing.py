"""Many jobs drawn: checked first, cut into shards, drawn here or on other machines, and merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from flows.fan_out import check_server, run_shards
from flows.shard import shard
from sampling_core.grid_job import NamedJob, distinct
from sampling_core.hashing import content_hash
from sampling_core.shards import shards
from tasks.decoding import file_stem
from tasks.merging import merge
from tasks.runs import check_all
from tasks.settings import Keep
from tasks.trust import out_place, store_place


class Places(NamedTuple):
    """Where things are kept: URL of the store, folder of the pictures; None: as this machine is set up."""

    store: str | None
    out: str | None
    keep: Keep | None


class Spread(NamedTuple):
    """How jobs are spread over machines; None machines: all are drawn in this process."""

    machines: int | None
    jobs_per_shard: int | None
    give_up_after: float
    poll: float = 5.0


async def draw(jobs: Sequence[NamedJob], name: str, columns: int, places: Places, spread: Spread) -> dict[str, Any]:
    """Draw jobs and merge their pictures in rows of `columns`. Equal jobs are drawn once.

    Raises BadInput before anything is drawn for jobs that cannot be, and RuntimeError, once everything that can be
    drawn is, if some are missing.
    """
    store, out = store_place(places.store), out_place(places.out)
    if spread.machines is not None:
        check_server(spread.machines)
    different = list(dict.fromkeys(distinct(jobs).values()))
    known = check_all(different)
    hashes = {called: known[first.name] for called, first in distinct(jobs).items()}
    parts = shards(different, spread.machines or 1, spread.jobs_per_shard)
    unfinished: list[str] = []
    counted: list[dict[str, Any]] = []
    if spread.machines is None:
        counted = [await shard(list(part), store=places.store, keep=places.keep) for part in parts]
    else:
        unfinished = await run_shards(parts, places.store, places.keep, spread.poll, spread.give_up_after)
    folder = f"{out}/{file_stem(content_hash([columns, list(hashes.values())]), name)}"
    merged = await merge(list(jobs), hashes, columns, store, folder)
    if merged.missing:
        shards_told = f" ({', '.join(unfinished)} did not complete)" if unfinished else ""
        raise RuntimeError(f"not drawn: {', '.join(merged.missing)}{shards_told}; start the run again")
    return merged.model_dump(mode="json") | {"shards": len(parts), "counted": counted}
