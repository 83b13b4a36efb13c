"""Adapters that a job or its regions add to a model, as a person writes them: LoRAs, controls, image prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from prefect_regional_diffusion.sampling_core.job.fields import FrozenModel, Number, Text, validation_error
from prefect_regional_diffusion.sampling_core.names import ControlPlace, Fit

MOST_LORAS = 8
MOST_CONTROLS = 4
MOST_IMAGE_PROMPTS = 8


class Lora(FrozenModel):
    """Weights that are added to a model's own: in the same forward, for those rows alone that ask for them."""

    model_config = ConfigDict(title="LoRA")
    file: Text = Field(min_length=1, title="File", description="A .safetensors file with kohya's or diffusers' names")
    strength: Number = Field(
        default=1.0, ge=-100, le=100, title="Strength", description="Of what is added to the denoiser"
    )
    text_strength: Annotated[Number, Field(ge=-100, le=100)] | None = Field(
        default=None, title="Text strength", description="Of what is added to the text encoders. Empty: the strength"
    )


class Control(FrozenModel):
    """A picture that a ControlNet or T2I-Adapter steers by, for those rows of a forward alone that ask for it."""

    model_config = ConfigDict(title="Control")
    file: Text = Field(
        min_length=1,
        title="File",
        description="A ControlNet or T2I-Adapter: a folder (diffusers), or a .safetensors file",
    )
    image: Text = Field(
        min_length=1, title="Image", description="Image file as the network wants it: edges, depth, a pose"
    )
    strength: Number = Field(default=1.0, ge=0, le=10, title="Strength", description="Of what is added")
    start: Number = Field(default=0.0, ge=0, lt=1, title="Start", description="Share of the steps that are done before")
    end: Number = Field(default=1.0, gt=0, le=1, title="End", description="Share of the steps that are done after")
    fit: Fit = Field(
        default="crop",
        title="Fit",
        description="Where the image's shape is not the canvas': crop: its middle fills the canvas; "
        "contain: all of it is seen, and the rest is black; stretch: it is distorted",
    )
    place: ControlPlace = Field(
        default="canvas",
        title="Place",
        description="region: the image lies on the smallest rectangle around the region's mask; the rest is black",
    )

    @model_validator(mode="after")
    def _starts_before_it_ends(self) -> Control:
        check_window(self.start, self.end)
        return self


class ImagePrompt(FrozenModel):
    """An image that the denoiser attends to beside the prompt: for those rows alone that ask for it."""

    model_config = ConfigDict(title="Image prompt")
    file: Text = Field(min_length=1, title="File", description="An IP-Adapter for the model, in a .safetensors file")
    image: Text = Field(min_length=1, title="Image", description="Image file. Its middle is looked at, as a square")
    strength: Number = Field(default=1.0, ge=-10, le=10, title="Strength", description="Of what is added. 0: none")
    start: Number = Field(
        default=0.0, ge=0, lt=1, title="Start", description="Share of the steps that are done when it begins"
    )
    end: Number = Field(
        default=1.0, gt=0, le=1, title="End", description="Share of the steps that are done when it ends"
    )
    image_encoder: Text | None = Field(
        default=None,
        min_length=1,
        title="Image encoder",
        description="Folder of CLIP's image encoder. Empty: image_encoder beside the file",
    )

    @model_validator(mode="after")
    def _starts_before_it_ends(self) -> ImagePrompt:
        check_window(self.start, self.end)
        return self


def check_window(start: float, end: float) -> None:
    """Raise the error of shares of the steps between which there is none."""
    if start >= end:
        raise validation_error("end", end, f"more than start ({start:g})")
