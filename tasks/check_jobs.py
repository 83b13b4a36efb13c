"""Tasks: check and prepare several jobs before they are drawn, one task for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prefect_regional_diffusion.sampling_core.errors import BadBatch, RegionalError
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.tasks.build_masks import with_masks
from prefect_regional_diffusion.tasks.inputs.limits import check_evaluations
from prefect_regional_diffusion.tasks.inputs.size_limits import check_jobs, check_shard
from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.preparations import preparations, prepared_once
from prefect_regional_diffusion.tasks.runtime.prepare import Prepared
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.storage.parallel_io import write_all


def checked(named_job: NamedJob, *, keep: bool = True) -> Prepared:
    """Raises the error of a job that cannot be drawn, with its name before the field.

    With `keep`, the prepared job is kept for the flow that draws it in this process.
    """
    with _mistakes_of(named_job):
        return preparations().look_up(named_job.job, keep=keep)


def filled_in(named_job: NamedJob) -> NamedJob:
    """The job with its model's defaults in fields that it leaves out. Raises BadInput, which names the job."""
    with _mistakes_of(named_job):
        return NamedJob(name=named_job.name, job=preparations().filled_in(named_job.job))


def _take_job(named_job: NamedJob) -> Prepared:
    """The same, to be drawn now: it is not kept any longer."""
    with _mistakes_of(named_job):
        return preparations().take(named_job.job)


@contextmanager
def _mistakes_of(named_job: NamedJob) -> Generator[None]:
    """Puts the job's name before the field of errors."""
    try:
        yield
    except RegionalError as error:
        raise error.within(f"{named_job.name}.") from error


def prepared_files(job_files: Mapping[Path, NamedJob]) -> dict[Path, Prepared]:
    """The jobs of files, checked. Raises BadBatch with a mistake for each file that cannot be drawn."""
    cache, prepared = preparations(), dict[Path, Prepared]()
    mistakes: list[RegionalError] = []
    for file, named_job in job_files.items():
        try:
            prepared[file] = cache.look_up(named_job.job)
        except RegionalError as error:
            mistakes.append(error.within(f"{file}: "))
    if mistakes:
        raise BadBatch(mistakes)
    return prepared


@task("check jobs")
def check_all(jobs: list[NamedJob], *, drawn_here: bool = True) -> dict[str, str]:
    """The hashes of jobs by name. Raises BadInput for the first that cannot be drawn, or is too much.

    Jobs that are not `drawn_here` are prepared by the processes that draw them, so nothing is kept of them.
    """
    check_jobs(jobs)
    hashes: dict[str, str] = {}
    evaluations = 0
    with prepared_once():
        for named_job in jobs:
            prepared = checked(named_job, keep=drawn_here)
            hashes[named_job.name] = prepared.job_hash
            evaluations += prepared.cost.evaluations
            # After each job: counting all of them takes time, too.
            check_evaluations("jobs", evaluations)
    return hashes


@task("build masks")
async def prepare_all(jobs: list[NamedJob], store_url: str, ready: asyncio.Future[dict[str, RenderContext]]) -> None:
    """Check the jobs, at least one, hand on their runs by name, and store their masks."""
    check_jobs(jobs)
    check_shard(jobs)
    prepared = await asyncio.to_thread(lambda: [_take_job(named_job) for named_job in jobs])
    check_evaluations("jobs", sum(prepared_job.cost.evaluations for prepared_job in prepared))
    runs, unstored = await with_masks(prepared, store_url)
    ready.set_result({named_job.name: run for named_job, run in zip(jobs, runs, strict=True)})
    await write_all(runs[0].store, unstored)
