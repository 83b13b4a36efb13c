"""The part of the canvas that the network sees when it evaluates a region, as a person writes it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, Tag

from prefect_regional_diffusion.sampling_core.job.fields import AnyOf, FrozenModel, StrictInt
from prefect_regional_diffusion.sampling_core.names import WindowRule


class CropWindow(FrozenModel):
    """The rectangle around a region, as far as its mask has any weight, rounded to what suits its model."""

    model_config = ConfigDict(title="Window")
    margin: StrictInt = Field(
        default=0, ge=0, le=4096, title="Margin", description="Pixels around it that are seen as well"
    )
    full_steps: StrictInt = Field(
        default=0,
        ge=0,
        le=999,
        title="Full steps",
        description="First steps of the run in which all of the canvas is seen",
    )


def _tag(value: Any) -> str:
    return "window" if isinstance(value, CropWindow | dict) else "rule"


WindowField = Annotated[
    Annotated[WindowRule, Tag("rule"), Field(title="Rule")] | Annotated[CropWindow, Tag("window")],
    Discriminator(_tag),
    AnyOf,
]
"""The canvas, a window of these sizes, or a window where it saves enough."""
