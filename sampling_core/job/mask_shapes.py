"""Masks of regions, as a person writes them: one of several kinds, which are told apart by their required fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema

from prefect_regional_diffusion.sampling_core.job.fields import AnyOf, OpenFrozenModel, StrictInt, validation_error
from prefect_regional_diffusion.sampling_core.names import Fit

Fraction = Annotated[float, Field(ge=0, le=1)]
Extent = Annotated[float, Field(gt=0, le=1)]
Channel = Annotated[StrictInt, Field(ge=0, le=255)]

_HEX = re.compile(r"#(?:[0-9a-f]{3}|[0-9a-f]{6})", re.IGNORECASE)
_COLORS = '[red, green, blue], 0 to 255 each, or hexadecimal in quotes, as "#ff8000" or "#f80"'


def _channels(value: Any) -> Any:
    """Hexadecimal colours as three numbers; forms and hashes know these alone."""
    if isinstance(value, str) and _HEX.fullmatch(value):
        digits = value[1:] if len(value) == 7 else "".join(2 * digit for digit in value[1:])
        return tuple(bytes.fromhex(digits))
    if isinstance(value, list | tuple) and len(value) == 3:
        return value
    # YAML takes an unquoted #ff0000 for a comment: nothing is left.
    raise validation_error("", value, _COLORS)


Color = Annotated[tuple[Channel, Channel, Channel], BeforeValidator(_channels)]


class Rectangle(OpenFrozenModel):
    """An upright rectangle, in fractions of the canvas (0 is left or top, 1 is right or bottom)."""

    model_config = ConfigDict(title="Rectangle")
    kind: SkipJsonSchema[Literal["rectangle"]] = "rectangle"
    x: Fraction = Field(title="Left edge", description="0 to 1 of the width")
    y: Fraction = Field(title="Top edge", description="0 to 1 of the height")
    width: Extent = Field(title="Width", description="0 to 1 of the width")
    height: Extent = Field(title="Height", description="0 to 1 of the height")

    @model_validator(mode="after")
    def _inside(self) -> Rectangle:
        # 0.7 + 0.3 is 0.9999999999999999 or 1.0000000000000002: rounding must not push it off the canvas.
        for start, extent, name in ((self.x, self.width, "width"), (self.y, self.height, "height")):
            if start + extent > 1 + 1e-9:
                edge = "x" if name == "width" else "y"
                raise validation_error(
                    name, extent, f"at most {1 - start:g} ({edge} + {name} must stay inside the canvas)"
                )
        return self


class Ellipse(OpenFrozenModel):
    """An upright ellipse, in fractions of the canvas."""

    model_config = ConfigDict(title="Ellipse")
    kind: SkipJsonSchema[Literal["ellipse"]] = "ellipse"
    center_x: Fraction = Field(title="Centre, from left", description="0 to 1")
    center_y: Fraction = Field(title="Centre, from top", description="0 to 1")
    radius_x: Extent = Field(title="Radius across", description="0 to 1 of the width")
    radius_y: Extent = Field(title="Radius down", description="0 to 1 of the height")

    @model_validator(mode="after")
    def _inside(self) -> Ellipse:
        for center, radius, axis in ((self.center_x, self.radius_x, "x"), (self.center_y, self.radius_y, "y")):
            room = min(center, 1 - center)
            if radius > room + 1e-9:
                allowed = f"at most {room:g} (the ellipse must stay inside the canvas)"
                raise validation_error(f"radius_{axis}", radius, allowed)
        return self


class Polygon(OpenFrozenModel):
    """A closed polygon; each point is [x, y] in fractions of the canvas."""

    model_config = ConfigDict(title="Polygon")
    kind: SkipJsonSchema[Literal["polygon"]] = "polygon"
    points: tuple[tuple[Fraction, Fraction], ...] = Field(
        min_length=3, max_length=1000, title="Points", description="[[x, y], ...] with x and y from 0 to 1"
    )


_FIT_HELP = (
    "Where the image's shape is not the canvas': crop: its middle fills the canvas; contain: all of it is seen, "
    "the rest is outside; stretch: it is distorted"
)


class Image(OpenFrozenModel):
    """The brightness of an image file: white is inside. Resized to the canvas."""

    model_config = ConfigDict(title="Image")
    kind: SkipJsonSchema[Literal["image"]] = "image"
    image: str = Field(min_length=1, title="Image file", description="White is inside")
    fit: Fit = Field(default="crop", title="Fit", description=_FIT_HELP)


class ColorMap(OpenFrozenModel):
    """One colour of a colour map: an image file in which each region has its own colour. Resized to the canvas."""

    model_config = ConfigDict(title="Colour of a colour map")
    kind: SkipJsonSchema[Literal["color_map"]] = "color_map"
    color_map: str = Field(min_length=1, title="Image file")
    color: Color = Field(title="Colour", description="[red, green, blue], 0 to 255 each")
    tolerance: StrictInt = Field(
        default=0,
        ge=0,
        le=255,
        title="Tolerance",
        description="By how much each of red, green and blue may differ, as in a JPEG. 0: exactly this colour",
    )
    fit: Fit = Field(default="crop", title="Fit", description=_FIT_HELP)


def _kind_of(value: Any) -> str | None:
    if isinstance(value, OpenFrozenModel):
        return str(getattr(value, "kind", ""))
    if not isinstance(value, Mapping):
        return None
    if "kind" in value:
        return str(value["kind"])
    for kind, names in _TELLING_FIELDS.items():
        if any(name in value for name in names):
            return kind
    return None


MaskShape = Annotated[
    Annotated[Rectangle, Tag("rectangle")]
    | Annotated[Ellipse, Tag("ellipse")]
    | Annotated[Polygon, Tag("polygon")]
    | Annotated[Image, Tag("image")]
    | Annotated[ColorMap, Tag("color_map")],
    Discriminator(_kind_of),
    AnyOf,
]

MASK_KINDS: dict[str, type[OpenFrozenModel]] = {
    tag.tag: kind for kind, tag in map(get_args, get_args(get_args(MaskShape)[0]))
}
"""The members of the union, by their tags."""
_TELLING_FIELDS = {
    tag: [name for name, field in kind.model_fields.items() if field.is_required()] for tag, kind in MASK_KINDS.items()
}
SHAPE_HELP = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in _TELLING_FIELDS.items())
