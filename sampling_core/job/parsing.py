"""Job data -> RenderJob, with one clear line per mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prefect_regional_diffusion.sampling_core.errors import BadInput, BadJob
from prefect_regional_diffusion.sampling_core.job.comfyui_node import UNTOUCHED
from prefect_regional_diffusion.sampling_core.job.field_types import fields_at
from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob
from prefect_regional_diffusion.sampling_core.job.mask_shapes import (
    SHAPE_HELP,
    ColorMap,
    Ellipse,
    Image,
    Polygon,
    Rectangle,
)
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.spellings import meant_field, meant_value

M = TypeVar("M", bound=BaseModel)

_SHAPES: dict[str, type[BaseModel]] = {
    "rectangle": Rectangle,
    "ellipse": Ellipse,
    "polygon": Polygon,
    "image": Image,
    "color_map": ColorMap,
}
_MOST_MISTAKES = 200
"""That are told of one job: nobody reads more, and each is compared with all fields."""
_SHAPE_FIELDS = ("mask", "tile")
_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "too_short": "{min_length} or more items",
    "too_long": "at most {max_length} items",
    "string_too_short": "a text that is not empty",
    "string_too_long": "at most {max_length} characters",
    "finite_number": "a finite number",
    "missing": "a value (this field is required)",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "tuple": "a list",
    "model": "a mapping",
    "bool": "true or false",
}


def parse_job(data: object) -> RenderJob:
    """Validate job data as a person wrote it in YAML or JSON. Raises BadJob."""
    _check_node(data, "")
    return _parsed(RenderJob, data)


def parse_grid(data: object) -> GridJob:
    """Validate the data of a grid job, in the same way. Raises BadJob."""
    if isinstance(data, Mapping):
        _check_node(cast("Mapping[str, object]", data).get("job"), "job.")
    return _parsed(GridJob, data)


def _check_node(data: object, prefix: str) -> None:
    """Raise BadJob for `node` without sequential composition.

    One that nobody has touched is let through: forms and the jobs inside finished pictures always have one.
    """
    if not isinstance(data, Mapping):
        return
    job = cast("Mapping[str, object]", data)
    if job.get("node") not in (None, UNTOUCHED.model_dump(mode="json")) and job.get("composition", "joint") == "joint":
        raise BadJob([BadInput(f"{prefix}node", job["node"], "left out, unless there is composition: sequential")])


def _parsed(model: type[M], data: object) -> M:
    if not isinstance(data, Mapping):
        raise BadJob([BadInput("job", data, f"a mapping with the fields {', '.join(model.model_fields)}")])
    try:
        return model.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)[:_MOST_MISTAKES]
        raise BadJob([_explain(detail, model) for detail in _one_each(details, model)]) from None


def _one_each(details: Sequence[ErrorDetails], model: type[BaseModel]) -> Iterable[ErrorDetails]:
    """One of Pydantic's errors for each mistake that a person made."""
    # A misspelt field that is required is also a missing one.
    misspelt = {
        (*detail["loc"][:-1], meant_field(str(detail["loc"][-1]), _fields_at(detail["loc"], model)))
        for detail in details
        if detail["type"] == "extra_forbidden"
    }
    told = set[tuple[int | str, ...]]()
    for detail in details:
        if detail["type"] == "missing" and detail["loc"] in misspelt:
            continue
        # Pydantic does not count the items that are wrong in themselves.
        if detail["type"] == "too_short" and len(detail["input"]) >= detail.get("ctx", {})["min_length"]:
            continue
        point = _malformed_point(detail)
        # A list of numbers in the place of points is one mistake, and each of its numbers an error.
        place = point[:-1] if detail["type"] == "tuple_type" else point
        if place and place in told:
            continue
        told.add(place)
        yield detail


def _malformed_point(detail: ErrorDetails) -> tuple[int | str, ...]:
    """Where the polygon's point is that an error is about; empty if it is about none, or about one of its numbers."""
    loc = detail["loc"]
    at = loc.index("points") + 2 if "points" in loc else len(loc) + 1
    return loc[:at] if len(loc) == at or (len(loc) > at and detail["type"] == "missing") else ()


def _explain(detail: ErrorDetails, model: type[BaseModel]) -> BadInput:
    kind, context = detail["type"], detail.get("ctx", {})
    path = _as_written(detail["loc"])
    value = detail["input"]
    if kind == "not_allowed":
        return BadInput(_dotted([*path, *filter(None, [context["field"]])]), context["value"], context["allowed"])
    if kind == "extra_forbidden":
        known = _fields_at(detail["loc"], model)
        return BadInput(_dotted(path), value, _instead_of(meant_field(str(path[-1]), known), known))
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        return BadInput(_dotted(path), value, SHAPE_HELP)
    if kind == "literal_error" and isinstance(value, str):
        known = re.findall(r"'([^']*)'", context["expected"])
        return BadInput(_dotted(path), value, _instead_of(meant_value(str(path[-1]), value, known), known))
    if point := _malformed_point(detail):
        return BadInput(_dotted(_as_written(point)), value, "[x, y], two numbers from 0 to 1")
    return BadInput(_dotted(path), None if kind == "missing" else value, allowed_by(kind, context, detail["msg"]))


def allowed_by(kind: str, context: Mapping[str, Any], message: str) -> str:
    """What Pydantic would have taken, from an error's kind, context and message."""
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**context)
    return next((text for name, text in _KINDS.items() if kind.startswith(name)), message)


def _as_written(loc: tuple[int | str, ...]) -> list[int | str]:
    return [part for i, part in enumerate(loc) if not _is_tag(loc, i)]


def _is_tag(loc: tuple[int | str, ...], i: int) -> bool:
    """Pydantic puts the union member's tag behind a field with a shape; a person never wrote it."""
    return i > 0 and _holds_a_shape(loc, i - 1) and loc[i] in _SHAPES


def _holds_a_shape(loc: tuple[int | str, ...], i: int) -> bool:
    return loc[i] in _SHAPE_FIELDS or (i > 0 and loc[i - 1] == "protect")


def _dotted(path: list[int | str]) -> str:
    return ".".join(str(part) for part in path)


def _fields_at(loc: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    for i in range(len(loc) - 1):
        if _holds_a_shape(loc, i) and loc[i + 1] in _SHAPES:
            return [name for name in _SHAPES[str(loc[i + 1])].model_fields if name != "kind"]
    return fields_at(model, loc[:-1])


def _instead_of(meant: str | None, known: Sequence[str]) -> str:
    first = f"{meant} (did you mean this?), " if meant else ""
    return first + ", ".join(name for name in known if name != meant)
