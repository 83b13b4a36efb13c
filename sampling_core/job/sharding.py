"""Jobs cut into shards: those of one shard are drawn by one process, with one loaded model, in the same forwards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob

JOBS_PER_SHARD = 32
"""To start a process and load a model takes as long as a few pictures; with 32 that is a tenth of the whole."""

MOST_PER_SHARD = 256

MAX_BYTES = 256 * 1024
"""Of a shard's jobs as JSON. A Prefect server accepts parameters of up to twice that."""


def shards(jobs: Sequence[NamedJob], parallel: int, jobs_per_shard: int | None = None) -> list[tuple[NamedJob, ...]]:
    """The jobs, in their order, in parts of nearly equal size; at least `parallel` parts, if there are as many jobs.

    A part has at most `jobs_per_shard` jobs (default JOBS_PER_SHARD) and about MAX_BYTES of JSON.
    """
    if not jobs:
        return []
    parallel = max(parallel, 1)
    size = sum(len(named_job.model_dump_json(exclude_unset=True)) for named_job in jobs)
    least_shards = max(parallel, -(-len(jobs) // (jobs_per_shard or JOBS_PER_SHARD)), -(-size // MAX_BYTES))
    # A multiple of `parallel`, so that no worker waits for the last shard of another.
    count = min(len(jobs), -(-least_shards // parallel) * parallel)
    return [tuple(jobs[first:last]) for first, last in pairwise(len(jobs) * i // count for i in range(count + 1))]
