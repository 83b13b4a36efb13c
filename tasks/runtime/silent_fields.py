"""What a job is silent about and its model knows: size, steps, guidance, sampler and scheduler that suit it."""

from __future__ import annotations

from collections.abc import Callable

from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.shared_fields import OF_THE_MODEL
from prefect_regional_diffusion.sampling_core.models.family import Defaults


def filled_in(job: RenderJob, defaults_of: Callable[[str], Defaults]) -> RenderJob:
    """The job with what suits its model in the fields that nobody has set. Filling in again changes nothing.

    Raises BadJob for a job that another field does not go together with, and what `defaults_of` raises.
    """
    silent = [name for name in OF_THE_MODEL if name not in job.model_fields_set]
    if not silent or job.model == "embedded":
        return job
    defaults = defaults_of(job.model)
    suits = {name: getattr(defaults, name) for name in silent}
    return parse_job(job.model_dump(mode="json", exclude_unset=True) | suits)
