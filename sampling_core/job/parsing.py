"""Job data -> RenderJob, with one clear line per mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prefect_regional_diffusion.sampling_core.errors import BadInput, BadJob
from prefect_regional_diffusion.sampling_core.job.comfyui_node import DEFAULT_NODE, NODES
from prefect_regional_diffusion.sampling_core.job.field_types import field_names, located
from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob
from prefect_regional_diffusion.sampling_core.job.mask_shapes import SHAPE_HELP
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.spellings import meant_field, meant_value
from prefect_regional_diffusion.sampling_core.names import NodeName

M = TypeVar("M", bound=BaseModel)

_MOST_MISTAKES = 200
"""Of one job that are reported: nobody reads more, and each is compared with all fields."""
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
    return _validate(RenderJob, data)


def parse_grid(data: object) -> GridJob:
    """Validate the data of a grid job, in the same way. Raises BadJob."""
    if isinstance(data, Mapping):
        _check_node(cast("Mapping[str, object]", data).get("job"), "job.")
    return _validate(GridJob, data)


def _check_node(data: object, prefix: str) -> None:
    """Raise BadJob for `node` without sequential composition.

    A node of defaults is accepted: forms and the jobs inside finished pictures always have one.
    """
    if not isinstance(data, Mapping):
        return
    job = cast("Mapping[str, object]", data)
    is_changed = job.get("node") not in (None, DEFAULT_NODE.model_dump(mode="json"))
    if is_changed and job.get("composition", "joint") != "sequential":
        raise BadJob([BadInput(f"{prefix}node", job["node"], "left out, unless there is composition: sequential")])


def _validate(model: type[M], data: object) -> M:
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
        (*detail["loc"][:-1], meant_field(str(detail["loc"][-1]), field_names(located(model, detail["loc"])[1])))
        for detail in details
        if detail["type"] == "extra_forbidden"
    }
    reported_places = set[tuple[int | str, ...]]()
    for detail in details:
        if detail["type"] == "missing" and detail["loc"] in misspelt:
            continue
        # Pydantic does not count the items that are wrong in themselves.
        if detail["type"] == "too_short" and len(detail["input"]) >= detail.get("ctx", {})["min_length"]:
            continue
        point = _malformed_point(detail)
        # A list of numbers in the place of points is one mistake, and each of its numbers an error.
        place = point[:-1] if detail["type"] == "tuple_type" else point
        if place and place in reported_places:
            continue
        reported_places.add(place)
        yield detail


def _malformed_point(detail: ErrorDetails) -> tuple[int | str, ...]:
    """The path of the polygon's point that an error is about; empty if there is none, or for one of its numbers."""
    loc = detail["loc"]
    length = loc.index("points") + 2 if "points" in loc else len(loc) + 1
    return loc[:length] if len(loc) == length or (len(loc) > length and detail["type"] == "missing") else ()


def _explain(detail: ErrorDetails, model: type[BaseModel]) -> BadInput:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    path, owners = located(model, detail["loc"])
    if kind == "not_allowed":
        return BadInput(_dotted([*path, *filter(None, [context["field"]])]), context["value"], context["allowed"])
    if kind == "extra_forbidden":
        return BadInput(_dotted(path), value, _node_prefix(owners) + _allowed_fields(path, owners))
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        return _unknown_kind(path, value)
    if kind == "literal_error" and isinstance(value, str):
        return BadInput(_dotted(path), value, _allowed_values(str(path[-1]), value, _quoted(context["expected"])))
    if point := _malformed_point(detail):
        return BadInput(_dotted(located(model, point)[0]), value, "[x, y], two numbers from 0 to 1")
    return BadInput(_dotted(path), None if kind == "missing" else value, allowed_by(kind, context, detail["msg"]))


def _unknown_kind(path: Sequence[int | str], value: object) -> BadInput:
    """The error of a mask or a node of an unknown kind."""
    if path[-1] != "node":
        return BadInput(_dotted(path), value, SHAPE_HELP)
    if not isinstance(value, Mapping):
        return BadInput(_dotted(path), value, "a mapping")
    name, node_names = cast("Mapping[str, object]", value).get("name"), get_args(NodeName)
    return BadInput(_dotted([*path, "name"]), name, _allowed_values("name", str(name), node_names))


def allowed_by(kind: str, context: Mapping[str, Any], message: str) -> str:
    """What Pydantic would have accepted, from an error's kind, context and message."""
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**context)
    return next((text for name, text in _KINDS.items() if kind.startswith(name)), message)


def _dotted(path: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in path)


def _quoted(expected: str) -> list[str]:
    return re.findall(r"'([^']*)'", expected)


def _node_prefix(owners: Sequence[type[BaseModel]]) -> str:
    """The node whose fields are listed, as a prefix; empty if it is no node."""
    return "".join(f"with {node.__name__}: " for node in owners if node in NODES)


def _allowed_fields(path: Sequence[int | str], owners: Sequence[type[BaseModel]]) -> str:
    names = field_names(owners)
    return _instead_of(meant_field(str(path[-1]), names), names)


def _allowed_values(field: str, value: str, names: Sequence[str]) -> str:
    return _instead_of(meant_value(field, value, names), names)


def _instead_of(suggestion: str | None, names: Sequence[str]) -> str:
    first = f"{suggestion} (did you mean this?), " if suggestion else ""
    return first + ", ".join(name for name in names if name != suggestion)
