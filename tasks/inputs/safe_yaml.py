"""Parses the text of a job file: YAML 1.2 (core schema) or JSON, at a bounded cost, each key once.

In YAML a short text can stand for much data (aliases, merged mappings), and PyYAML reads YAML 1.1, in which `017` is
15, `1:30` is 90 and `no` is false.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode

from prefect_regional_diffusion.sampling_core.text.strict_json import each_once

_MOST_ALIASES = 1000
_MOST_KEYS = 1000
"""Of one mapping, what is merged into it included."""


def read_yaml(text: str, most: int) -> Any:
    """YAML as plain data, at most `most` characters of JSON. Raises ValueError, whatever the library stumbles over."""
    try:
        return json.loads(_expand_aliases(_Loader(text).get_single_data(), most))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1 if mark else 1}: {_one_line(error.problem or error)}") from error
    except Exception as error:
        raise ValueError(_one_line(error)) from error


def read_json(text: str) -> Any:
    """JSON as plain data. Raises ValueError for what is no JSON, or has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(_one_line(error)) from error


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:160]


def _expand_aliases(data: Any, most: int) -> str:
    """The data as JSON, without aliases.

    An alias makes two fields one object, and an override of the one would change the other. Written out, the data may
    be far larger than the file, so its size is checked piece by piece.
    """
    pieces: list[str] = []
    size = 0
    for piece in json.JSONEncoder().iterencode(data):
        size += len(piece)
        if size > most:
            raise ValueError(f"more than {most} characters with its aliases written out")
        pieces.append(piece)
    return "".join(pieces)


_STR, _NULL, _BOOL, _INT, _FLOAT, _SEQ, _MAP = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "null", "bool", "int", "float", "seq", "map")
)
_MERGE = "tag:yaml.org,2002:merge"

_PLAIN = {
    # Section 10.3.2 of the YAML 1.2 specification; `<<` is 1.1's, and people know it.
    _NULL: r"~|null|Null|NULL|",
    _BOOL: r"true|True|TRUE|false|False|FALSE",
    _INT: r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    _FLOAT: r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    _MERGE: r"<<",
}
"""What a plain scalar is, by the first expression that it matches; else it is text."""


class _Loader(yaml.SafeLoader):
    """Limits aliases, and keys of merged mappings: either could double with every line."""

    # Replaces SafeLoader's own, which are YAML 1.1's: dates, sexagesimal and octal numbers, `yes` and `no`.
    yaml_implicit_resolvers: dict[Any, list[tuple[str, re.Pattern[str]]]] = {  # noqa: RUF012 - declared so by the base
        None: [(tag, re.compile(rf"(?:{plain})\Z")) for tag, plain in _PLAIN.items()]
    }
    aliases = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(AliasEvent):
            self.aliases += 1
            if self.aliases > _MOST_ALIASES:
                raise ValueError(f"more than {_MOST_ALIASES} aliases")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Checked before anything is merged: a mapping's own keys may stand over those that it merges."""
        node: MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode) or key.tag not in (_STR, _MERGE):
                description = repr(key.value[:80]) if isinstance(key, ScalarNode) else "of several parts"
                raise ValueError(f"line {line}: the key {description} is no text")
            name = str(key.value)
            if name in lines:
                raise ValueError(f"line {line}: the key {name[:80]!r} is there twice, first in line {lines[name]}")
            lines[name] = line
        return node

    def flatten_mapping(self, node: MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:
            raise ValueError(f"a mapping of more than {_MOST_KEYS} keys")


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _int(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2])
    return int(text, 10) if base is None else int(text[2:], base)


def _float(text: str) -> float:
    # `.inf` and `.nan` are `inf` and `nan` to Python.
    return float(text.replace(".", "", 1) if text[-1:].isalpha() else text)


def _constructor(parse: Callable[[str], object]) -> Callable[[_Loader, ScalarNode], object]:
    def construct(loader: _Loader, node: ScalarNode) -> object:
        text = loader.construct_scalar(node)
        try:
            return parse(text)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"line {node.start_mark.line + 1}: {text[:80]!r} is no {node.tag.rpartition(':')[2]}"
            ) from error

    return construct


_CONSTRUCTORS: dict[str | None, Callable[..., Any]] = {
    _STR: yaml.SafeLoader.construct_yaml_str,
    _NULL: yaml.SafeLoader.construct_yaml_null,
    _BOOL: _constructor(_bool),
    _INT: _constructor(_int),
    _FLOAT: _constructor(_float),
    _SEQ: yaml.SafeLoader.construct_yaml_seq,
    _MAP: yaml.SafeLoader.construct_yaml_map,
    _MERGE: yaml.SafeLoader.construct_yaml_str,  # where it is a value, and merges nothing
    None: yaml.SafeLoader.construct_undefined,
}
_Loader.yaml_constructors = _CONSTRUCTORS
