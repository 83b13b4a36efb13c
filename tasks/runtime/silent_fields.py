"""The fields that a job may leave to its model: size, steps, guidance, sampler and scheduler."""

from __future__ import annotations

from collections.abc import Callable

from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.shared_fields import OF_THE_MODEL
from prefect_regional_diffusion.sampling_core.models.family import Defaults


def filled_in(job: RenderJob, defaults_of: Callable[[str], Defaults]) -> RenderJob:
    """The job with its model's defaults in the fields that nobody has set. Filling in again changes nothing.

    Raises BadJob for a job that another field does not go together with, and what `defaults_of` raises.
    """
    silent_fields = [name for name in OF_THE_MODEL if name not in job.model_fields_set]
    if not silent_fields or job.model == "embedded":
        return job
    defaults = defaults_of(job.model)
    model_values = {name: getattr(defaults, name) for name in silent_fields}
    return parse_job(job.model_dump(mode="json", exclude_unset=True) | model_values)
