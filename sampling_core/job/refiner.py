"""A job's second model, and sizes that some models take as an input, as a person writes them."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from prefect_regional_diffusion.sampling_core.job.fields import FrozenModel, Number, StrictInt, Text


class SizeConditioning(FrozenModel):
    """Of which original, and of which part of it, a size-conditioned model takes the picture to be."""

    model_config = ConfigDict(title="Size conditioning")
    original_width: Annotated[StrictInt, Field(ge=1, le=65536)] | None = Field(
        default=None,
        title="Original width",
        description="Pixels. Empty: the canvas'. A small original is a blurred one",
    )
    original_height: Annotated[StrictInt, Field(ge=1, le=65536)] | None = Field(
        default=None, title="Original height", description="Pixels. Empty: the canvas'"
    )
    crop_left: StrictInt = Field(
        default=0, ge=0, le=65536, title="Crop left", description="Columns of pixels that are cut off"
    )
    crop_top: StrictInt = Field(
        default=0, ge=0, le=65536, title="Crop top", description="Rows of pixels that are cut off"
    )


class Refiner(FrozenModel):
    """A second model that draws the last steps: an ensemble of expert denoisers (Podell et al. 2023, section 2.5)."""

    model_config = ConfigDict(title="Refiner")
    model: Text = Field(min_length=1, title="Model", description="As the job's `model`; its latents are the same kind")
    start: Number = Field(default=0.8, gt=0, lt=1, title="Start", description="Share of the steps that are done before")
    aesthetic_score: Number = Field(
        default=6.0, ge=0, le=10, title="Aesthetic score", description="Of models that take one as an input"
    )
    negative_aesthetic_score: Number = Field(
        default=2.5, ge=0, le=10, title="Negative aesthetic score", description="The same beside the negative prompt"
    )
