"""Jobs are prepared once a run, for the command or the flow that checks them and for the flow that draws them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from threading import Lock

from prefect_regional_diffusion.sampling_core.bounded_cache import BoundedCache
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.models.family import Defaults
from prefect_regional_diffusion.sampling_core.planning.job_size import own_bytes
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.job_inputs import JobInputs, inputs_key, read_inputs
from prefect_regional_diffusion.tasks.runtime.model_cache import open_model
from prefect_regional_diffusion.tasks.runtime.prepare import Prepared, prepare
from prefect_regional_diffusion.tasks.runtime.silent_fields import filled_in


class Preparations:
    """Prepared jobs, and the inputs that several of them share: each is made once, in a bounded memory.

    Files and model folders are read when a job first needs them, and not again. Thread-safe.
    """

    def __init__(self, most_bytes: int) -> None:
        """At most so many bytes of inputs, and as many of latents and weights of jobs."""
        self._max_bytes = most_bytes
        self._inputs = BoundedCache[object, JobInputs](most_bytes, lambda inputs: inputs.bytes)
        self._jobs: dict[RenderJob, Prepared] = {}
        self._defaults: dict[str, Defaults] = {}
        self._bytes = 0
        self._lock = Lock()

    def filled_in(self, job: RenderJob) -> RenderJob:
        """The job with its model's defaults in fields that it leaves out. Raises BadInput or ModelError."""
        return filled_in(job, self._defaults_of)

    def _defaults_of(self, model: str) -> Defaults:
        with self._lock:
            defaults = self._defaults.get(model)
        if defaults is None:
            defaults = open_model(model).facts.defaults
            with self._lock:
                self._defaults[model] = defaults
        return defaults

    def look_up(self, job: RenderJob, *, keep: bool = True) -> Prepared:
        """The prepared job, which is kept for `take` as long as there is room. Raises RegionalError.

        Fields that the job leaves out get its model's defaults.
        """
        job = self.filled_in(job)
        with self._lock:
            earlier_result = self._jobs.get(job)
        if earlier_result is not None:
            return replace(earlier_result, job=job)
        prepared = prepare(job, self._inputs_of)
        size = own_bytes(prepared.resolved)
        with self._lock:
            # Those that come first are kept: they are also drawn first, and let go then.
            if keep and job not in self._jobs and self._bytes + size <= self._max_bytes:
                self._jobs[job] = prepared
                self._bytes += size
        return prepared

    def take(self, job: RenderJob) -> Prepared:
        """The prepared job, to be drawn: it is not kept any longer. Raises RegionalError."""
        job = self.filled_in(job)
        with self._lock:
            earlier_result = self._jobs.pop(job, None)
            if earlier_result is not None:
                self._bytes -= own_bytes(earlier_result.resolved)
        # An equal job may have been written with other fields left out; the result has the job as it was written.
        return self.look_up(job, keep=False) if earlier_result is None else replace(earlier_result, job=job)

    def _inputs_of(self, job: ResolvedJob) -> JobInputs:
        return self._inputs.get(inputs_key(job), lambda: read_inputs(job))


# Parameters of flows are JSON, so nothing prepared can be handed to a flow by whoever calls it: a command to a flow, or
# `grid` and `batch` to `shard`. A context variable carries it, and ends with the run: a later run looks at files anew.
_current: ContextVar[Preparations | None] = ContextVar("preparations", default=None)


@contextmanager
def prepared_once() -> Generator[None]:
    """Within this block, and in all that is called from it, each distinct job is prepared once."""
    if _current.get() is not None:
        yield
        return
    token = _current.set(_new())
    try:
        yield
    finally:
        _current.reset(token)


def preparations() -> Preparations:
    """The preparations of the block around this call; new ones without a block."""
    return _current.get() or _new()


def _new() -> Preparations:
    # In addition to the jobs that are drawn, which may take all that the setting allows.
    return Preparations(settings().max_tensor_bytes // 2)
