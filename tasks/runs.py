"""Tasks: what several jobs need before they can be drawn, one task for all of them."""

from __future__ import annotations

from prefect import task

from sampling_core.errors import BadInput, RegionalError
from sampling_core.grid_job import NamedJob
from tasks.masks import build_masks
from tasks.preparing import Prepared, prepare
from tasks.prompts import encode_prompts, encode_start
from tasks.run import Run


def checked(named: NamedJob) -> Prepared:
    """Raises BadInput for a job that cannot be drawn, with its name before the field."""
    try:
        return prepare(named.job)
    except RegionalError as error:
        raise BadInput(f"{named.name}.{error.field}", error.value, error.allowed) from error


@task(task_run_name="check jobs", persist_result=False)
def check_all(jobs: list[NamedJob]) -> dict[str, str]:
    """The hashes of jobs by name. Raises BadInput for the first that cannot be drawn."""
    return {named.name: checked(named).job_hash for named in jobs}


@task(task_run_name="build masks", persist_result=False)
def prepare_all(jobs: list[NamedJob], store_url: str) -> dict[str, Run]:
    """Check the jobs and store their masks; returns their runs by name."""
    return {named.name: build_masks.fn(named.job, store_url) for named in jobs}


@task(task_run_name="encode prompts", persist_result=False)
def encode_all(runs: list[Run]) -> None:
    """Encode the start images and prompts that the store does not have."""
    for run in runs:
        if run.job.start_image is not None:
            encode_start.fn(run)
        encode_prompts.fn(run)
