"""The types of the values at a dotted path of a job: read from the models, so that new fields need no entry here."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, Tag


class _Member(NamedTuple):
    """A type without its annotations, and the tag that it has in a union."""

    type: Any
    tag: str | None = None


def types_at(model: type[BaseModel], path: Sequence[int | str]) -> list[Any]:
    """The types, without unions and annotations, that a value at a path may have; none if there is no such field.

    An item of a list is a number in the path, or its digits.
    """
    members = [_Member(model)]
    for part in path:
        members = [member for outer in members for member in _inside(outer.type, part)]
    return [member.type for member in members]


def located(
    model: type[BaseModel], loc: Sequence[int | str]
) -> tuple[tuple[int | str, ...], tuple[type[BaseModel], ...]]:
    """Where one of Pydantic's errors is: the path that a person wrote, and the models that its last part is a field of.

    Pydantic puts a member's tag behind a field that holds a union; a person never wrote it.
    """
    path: list[int | str] = []
    members = owners = [_Member(model)]
    for part in loc:
        members_by_tag = [member for member in members if member.tag is not None and member.tag == part]
        if members_by_tag:
            members = members_by_tag
        else:
            path.append(part)
            owners, members = members, [member for outer in members for member in _inside(outer.type, part)]
    return tuple(path), tuple(member.type for member in owners if _is_model(member.type))


def field_names(models: Sequence[type[BaseModel]]) -> list[str]:
    """The fields of models, without `kind`, which masks have and people leave out."""
    return list(dict.fromkeys(name for model in models for name in model.model_fields if name != "kind"))


def is_text(types: Sequence[Any]) -> bool:
    """Whether nothing but text fits, or no value at all."""
    texts = [kind is str or (get_origin(kind) is Literal and _all_text(kind)) for kind in types if kind is not NoneType]
    return bool(texts) and all(texts)


def is_list(types: Sequence[Any]) -> bool:
    """Whether a list fits."""
    return any(get_origin(kind) is tuple for kind in types)


def _all_text(literal: Any) -> bool:
    return all(isinstance(value, str) for value in get_args(literal))


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _inside(outer: Any, part: int | str) -> list[_Member]:
    if _is_model(outer):
        field = outer.model_fields.get(part)
        return [] if field is None else _members(field.annotation)
    if get_origin(outer) is tuple and str(part).isdecimal():
        items = get_args(outer)
        index = 0 if items[-1] is Ellipsis else int(part)
        return _members(items[index]) if index < len(items) else []
    return []


def _members(annotation: Any, tag: str | None = None) -> list[_Member]:
    """The members of a union, or the type itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *notes = get_args(annotation)
        return _members(inner, next((note.tag for note in notes if isinstance(note, Tag)), tag))
    if origin in (Union, UnionType):
        return [inner_member for member in get_args(annotation) for inner_member in _members(member)]
    return [_Member(annotation, tag)]
