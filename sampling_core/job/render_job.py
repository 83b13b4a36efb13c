"""RenderJob: the job that a person writes. The same model is the YAML file, the JSON file and the UI form."""

from __future__ import annotations

from pydantic import ConfigDict, model_validator

from prefect_regional_diffusion.sampling_core.job.fields import validation_error
from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields
from prefect_regional_diffusion.sampling_core.job.validation import (
    check_composition,
    check_prompts,
    check_schedule,
)


class RenderJob(JobFields):
    """One picture: a base prompt over the whole canvas and regions with prompts of their own."""

    model_config = ConfigDict(title="Render job")

    @model_validator(mode="after")
    def _fields_fit_together(self) -> RenderJob:
        check_composition(self)
        check_prompts(self)
        first, steps = self.base_only_steps, self.steps
        if self.regions and first is not None and first >= steps:
            raise validation_error("base_only_steps", first, f"0 to {steps - 1} (less than steps)")
        check_schedule("denoise", steps, self.denoise)
        for index in self.batch_index:
            if index >= self.batch_size:
                raise validation_error("batch_index", index, f"0 to {self.batch_size - 1} (less than batch_size)")
        return self

    @property
    def pictures(self) -> int:
        """Pictures that are drawn at once."""
        return len(self.batch_index) or self.batch_size
