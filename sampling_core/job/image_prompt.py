"""Image prompts as a person writes them: images that a job or a region looks at, each by an IP-Adapter."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from prefect_regional_diffusion.sampling_core.job.fields import FrozenModel, Number, Text, validation_error

MOST_IMAGE_PROMPTS = 8


class ImagePrompt(FrozenModel):
    """An image that the denoiser attends to beside the prompt: for those rows alone that ask for it."""

    model_config = ConfigDict(title="Image prompt")
    file: Text = Field(min_length=1, title="File", description="An IP-Adapter for the model, in a .safetensors file")
    image: Text = Field(min_length=1, title="Image", description="Image file. Its middle is looked at, as a square")
    strength: Number = Field(1.0, ge=-10, le=10, title="Strength", description="Of what is added. 0: none")
    start: Number = Field(0.0, ge=0, lt=1, title="Start", description="Share of the steps that are done when it begins")
    end: Number = Field(1.0, gt=0, le=1, title="End", description="Share of the steps that are done when it ends")
    image_encoder: Text | None = Field(
        None,
        min_length=1,
        title="Image encoder",
        description="Folder of CLIP's image encoder. Empty: image_encoder beside the file",
    )

    @model_validator(mode="after")
    def _window_is_not_empty(self) -> ImagePrompt:
        if self.end <= self.start:
            raise validation_error("end", self.end, f"more than start ({self.start:g})")
        return self
