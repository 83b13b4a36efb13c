"""The second network of a job, for its last steps, with nothing left to look up."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields
from prefect_regional_diffusion.sampling_core.names import EmptyNegative


class ResolvedRefiner(NamedTuple):
    """A model, the share of the steps that are done before it begins, and the aesthetic scores of its two rows.

    `size_conditioned`, `scored` and `empty_negative` follow from the model: see `fit_to_models`.
    """

    model: str
    start: float
    aesthetic_score: float
    negative_aesthetic_score: float
    size_conditioned: bool = False
    scored: bool = False
    empty_negative: EmptyNegative = "encoded"


def resolved_refiner(job: JobFields) -> ResolvedRefiner | None:
    """The job's own, if it has one."""
    if job.refiner is None:
        return None
    refiner = job.refiner
    return ResolvedRefiner(refiner.model, refiner.start, refiner.aesthetic_score, refiner.negative_aesthetic_score)
