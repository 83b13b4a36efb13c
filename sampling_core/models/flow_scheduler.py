"""What is read of the scheduler of a rectified-flow model: how its noise levels are shifted, for which canvas."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, ClassVar

from pydantic import Field

from prefect_regional_diffusion.sampling_core.models.component import Class
from prefect_regional_diffusion.sampling_core.models.configurations import Configuration
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import SCHEDULER_FILES
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import (
    ModelLevels,
    flow_levels,
    time_shifted_levels,
)

FLOW_SCHEDULER = Class("diffusers", ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"))
_Shift = Annotated[float, Field(ge=-20, le=20)]
_Tokens = Annotated[int, Field(ge=1, le=2**20)]


class FlowScheduler(Configuration):
    """The shift of a flow model's noise levels is read; how its authors sample is ignored."""

    ONLY: ClassVar[Mapping[str, object]] = {
        "num_train_timesteps": 1000,
        "invert_sigmas": False,
        "shift_terminal": None,
        "time_shift_type": "exponential",
    }
    NOTES: ClassVar[frozenset[str]] = frozenset(
        [
            *("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values"),
            *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling"),
        ]
    )

    shift: Annotated[float, Field(gt=0, le=1000)] = 1.0
    use_dynamic_shifting: bool = False
    base_shift: _Shift = 0.5
    max_shift: _Shift = 1.15
    base_image_seq_len: _Tokens = 256
    max_image_seq_len: _Tokens = 4096

    def levels(self, tokens: int) -> ModelLevels:
        """The noise levels for pictures of so many tokens."""
        if not self.use_dynamic_shifting:
            return _static(self.shift)
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return _dynamic(tokens * slope + self.base_shift - slope * self.base_image_seq_len)


_static = lru_cache(maxsize=4)(flow_levels)
_dynamic = lru_cache(maxsize=16)(time_shifted_levels)


def read_flow_scheduler(files: ModelFiles) -> FlowScheduler:
    """The scheduler of a folder whose model is a flow model. Raises ModelError."""
    name = f"scheduler/{SCHEDULER_FILES[0]}"
    scheduler = FlowScheduler.read(files, name)
    if scheduler.use_dynamic_shifting and scheduler.base_image_seq_len >= scheduler.max_image_seq_len:
        raise files.error(f"has a max_image_seq_len that is not more than its base_image_seq_len ({name})")
    return scheduler
