"""`--set path.to.field=value`: changes of a job's data before it is checked."""

from __future__ import annotations

import re
from typing import Any, cast

from pydantic import BaseModel

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.field_types import is_list, is_text, types_at
from prefect_regional_diffusion.tasks.inputs.safe_yaml import read_yaml
from prefect_regional_diffusion.tasks.machine.settings import settings

_FORM = "path.to.field=value, for instance seed=7 or regions.0.prompt=fog"
_NUMBER = re.compile(r"[0-9]{1,9}")


def set_field(data: dict[str, Any], override: str, model: type[BaseModel]) -> None:
    """Put one override into the data of a job or a grid (`model` says which), in place. Raises BadInput.

    Where the field is text, the value is taken as it stands (but `null` where it may be left out); elsewhere it
    is YAML.
    """
    path, equals, text = override.partition("=")
    parts = path.split(".")
    if not equals or not all(parts):
        raise BadInput("--set", override, _FORM)
    target: Any = data
    for i, part in enumerate(parts[:-1]):
        inner = _item(target, parts, i, model)
        if inner is None:
            inner = [] if is_list(types_at(model, parts[: i + 1])) else {}
            target[_key(target, part)] = inner
        target = inner
    _item(target, parts, len(parts) - 1, model)
    target[_key(target, parts[-1])] = _value(path, text, types_at(model, parts))


def _item(target: Any, parts: list[str], i: int, model: type[BaseModel]) -> Any:
    """The present value at a part of the path; None if there is none."""
    part, here = parts[i], ".".join(parts[:i])
    if isinstance(target, list):
        items = cast("list[Any]", target)
        if not _NUMBER.fullmatch(part) or int(part) >= len(items):
            last = len(items) - 1
            numbers = "0" if last == 0 else f"0 to {last}"
            allowed = f"{numbers} ({here} has {last + 1})" if items else f"a path to what is there ({here} has none)"
            raise BadInput(f"--set {here}.{part}", part, allowed)
        return items[int(part)]
    if isinstance(target, dict):
        return cast("dict[str, Any]", target).get(part)
    raise BadInput(f"--set {'.'.join(parts)}", part, f"a path that ends at {here}, which is no mapping")


def _key(target: Any, part: str) -> Any:
    return int(part) if isinstance(target, list) else part


def _value(path: str, text: str, types: list[Any]) -> Any:
    if is_text(types):
        return None if text == "null" and type(None) in types else text
    if text.startswith("#"):  # a colour, and not a comment
        return text
    try:
        return read_yaml(text, settings().max_job_bytes)
    except ValueError as error:
        raise BadInput(f"--set {path}", text, f"a value in YAML ({error})") from error
