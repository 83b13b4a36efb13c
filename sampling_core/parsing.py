"""Job data -> RenderJob, with one clear line per mistake."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sampling_core.errors import BadInput, BadJob
from sampling_core.grid_job import Cell, GridJob
from sampling_core.job import Region, RenderJob
from sampling_core.original_node import Node
from sampling_core.shapes import SHAPE_HELP, ColorMap, Ellipse, Image, Polygon, Rectangle

M = TypeVar("M", bound=BaseModel)

_SHAPES: dict[str, type[BaseModel]] = {
    "rectangle": Rectangle,
    "ellipse": Ellipse,
    "polygon": Polygon,
    "image": Image,
    "color_map": ColorMap,
}
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
_PARTS: dict[int | str, type[BaseModel]] = {"regions": Region, "node": Node, "cells": Cell}
_KINDS = {"int": "a whole number", "float": "a number", "string": "text", "tuple": "a list", "model": "a mapping"}


def parse_job(data: object) -> RenderJob:
    """Validate job data (as read from YAML, JSON or a form). Raises BadJob."""
    return _parsed(RenderJob, data)


def parse_grid(data: object) -> GridJob:
    """Validate the data of a grid job. Raises BadJob."""
    return _parsed(GridJob, data)


def _parsed(model: type[M], data: object) -> M:
    if not isinstance(data, Mapping):
        raise BadJob([BadInput("job", data, f"a mapping with the fields {', '.join(model.model_fields)}")])
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise BadJob([_explain(detail, model) for detail in error.errors()]) from None


def _explain(detail: ErrorDetails, model: type[BaseModel]) -> BadInput:
    kind, context = detail["type"], detail.get("ctx", {})
    path = [part for i, part in enumerate(detail["loc"]) if not _is_tag(detail["loc"], i)]
    value = detail["input"]
    if kind == "not_allowed":
        return BadInput(_dotted([*path, *filter(None, [context["field"]])]), context["value"], context["allowed"])
    if kind == "extra_forbidden":
        return BadInput(_dotted(path), value, _instead_of(str(path[-1]), _fields_at(detail["loc"], model)))
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        return BadInput(_dotted(path), value, SHAPE_HELP)
    if kind == "missing":
        value = None
    if kind in _BOUNDS:
        return BadInput(_dotted(path), value, _BOUNDS[kind].format(**context))
    expected = next((text for name, text in _KINDS.items() if kind.startswith(name)), detail["msg"])
    return BadInput(_dotted(path), value, expected)


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
    match loc:
        case (_,):
            return list(model.model_fields)
        case ("job", *rest):
            return _fields_at(tuple(rest), RenderJob)
        case _:
            return list(_PARTS[loc[0]].model_fields)


def _instead_of(unknown: str, known: list[str]) -> str:
    close = get_close_matches(unknown, known, n=1)
    return (f"{close[0]} (did you mean this?), " if close else "") + ", ".join(k for k in known if k not in close)
