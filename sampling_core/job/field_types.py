"""What kind of value belongs at a dotted path of a job: read from the models, so that a new field is known at once."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def types_at(model: type[BaseModel], path: Sequence[int | str]) -> list[Any]:
    """The types, without unions and annotations, that a value at a path may have; none if there is no such field.

    An item of a list is a number in the path, or its digits.
    """
    found: list[Any] = [model]
    for part in path:
        found = [one for outer in found for one in _inside(outer, part)]
    return found


def fields_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Names of the fields of what is at a path."""
    models = [one for one in types_at(model, path) if _is_model(one)]
    return list(dict.fromkeys(name for one in models for name in one.model_fields if name != "kind"))


def is_text(types: Sequence[Any]) -> bool:
    """Whether nothing but text fits, or no value at all."""
    texts = [one is str or (get_origin(one) is Literal and _texts(one)) for one in types if one is not NoneType]
    return bool(texts) and all(texts)


def is_list(types: Sequence[Any]) -> bool:
    """Whether a list fits."""
    return any(get_origin(one) is tuple for one in types)


def _texts(literal: Any) -> bool:
    return all(isinstance(value, str) for value in get_args(literal))


def _is_model(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, BaseModel)


def _inside(outer: Any, part: int | str) -> list[Any]:
    if _is_model(outer):
        field = outer.model_fields.get(part)
        return [] if field is None else _plain(field.annotation)
    if get_origin(outer) is tuple and str(part).isdecimal():
        items = get_args(outer)
        at = 0 if items[-1] is Ellipsis else int(part)
        return _plain(items[at]) if at < len(items) else []
    return []


def _plain(annotation: Any) -> list[Any]:
    """The members of a union, without what annotates them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [one for member in get_args(annotation) for one in _plain(member)]
    return [annotation]
