"""What is read of a scheduler's configuration: the betas that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import isfinite
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from prefect_regional_diffusion.sampling_core.models.configurations import Configuration
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels, beta_levels

SCHEDULER = "scheduler/scheduler_config.json"


class BetaScheduler(Configuration):
    """Any scheduler of a model that was trained on betas: how it was trained is read, how to sample it is ignored."""

    ONLY: ClassVar[Mapping[str, object]] = {
        "trained_betas": None,
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
        "flow_shift": 1.0,
    }
    NOTES: ClassVar[frozenset[str]] = frozenset(
        [
            "_class_name",
            "_diffusers_version",
            "_name_or_path",
            "_use_default_values",
            "algorithm_type",
            "clip_sample",
            "clip_sample_range",
            "disable_corrector",
            "dynamic_thresholding_ratio",
            "euler_at_final",
            "final_sigmas_type",
            "interpolation_type",
            "lambda_min_clipped",
            "lower_order_final",
            "noise_sampler_seed",
            "original_inference_steps",
            "predict_x0",
            "sample_max_value",
            "set_alpha_to_one",
            "skip_prk_steps",
            "solver_order",
            "solver_p",
            "solver_type",
            "steps_offset",
            "tensor_format",
            "thresholding",
            "time_shift_type",
            "timestep_scaling",
            "timestep_spacing",
            "timestep_type",
            "use_beta_sigmas",
            "use_exponential_sigmas",
            "use_karras_sigmas",
            "use_lu_lambdas",
            "variance_type",
        ]
    )

    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    beta_schedule: Literal["scaled_linear", "linear"] = "linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.0001
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    rescale_betas_zero_snr: bool = False
    num_train_timesteps: Annotated[int, Field(ge=2, le=10_000)] = 1000


def read_beta_levels(files: ModelFiles) -> ModelLevels:
    """The noise levels of a folder whose model was trained on betas. Raises ModelError."""
    scheduler = BetaScheduler.read(files, SCHEDULER)
    if scheduler.rescale_betas_zero_snr and scheduler.prediction_type != "v_prediction":
        # At a level without signal, the noise says nothing about the picture.
        raise files.error(f"has rescale_betas_zero_snr without prediction_type v_prediction ({SCHEDULER})")
    levels = beta_levels(
        scheduler.prediction_type,
        scheduler.beta_start,
        scheduler.beta_end,
        scheduler.num_train_timesteps,
        scheduler.beta_schedule,
        zero_terminal_snr=scheduler.rescale_betas_zero_snr,
    )
    if not all(0 < low <= high and isfinite(high) for low, high in pairwise(levels.sigmas)):
        raise files.error(f"has noise levels that are not finite, or do not grow ({SCHEDULER})")
    return levels
