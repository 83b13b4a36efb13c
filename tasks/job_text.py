"""Text of a job file to plain data, at a bounded cost: YAML has ways to say much in few words."""

from __future__ import annotations

import json
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node

_MOST_ALIASES = 1000
_MOST_KEYS = 1000
"""Of one mapping, what is merged into it included."""


def read_yaml(text: str, most: int) -> Any:
    """YAML as plain data, at most `most` characters of JSON. Raises ValueError, whatever the library stumbles over."""
    try:
        return json.loads(_written_out(_Loader(text).get_single_data(), most))
    except Exception as error:
        raise ValueError(" ".join(str(error).split())[:160]) from error


def _written_out(data: Any, most: int) -> str:
    """The data as JSON, without aliases.

    They make two fields one object, and an override of the one would change the other. Written out, they may be
    far more than the file was: so piece by piece.
    """
    pieces: list[str] = []
    size = 0
    for piece in json.JSONEncoder(default=str).iterencode(data):
        size += len(piece)
        if size > most:
            raise ValueError(f"more than {most} characters with its aliases written out")
        pieces.append(piece)
    return "".join(pieces)


class _Loader(yaml.SafeLoader):
    """Few aliases, and merged mappings of few keys: either could double with every line."""

    aliases = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(AliasEvent):
            self.aliases += 1
            if self.aliases > _MOST_ALIASES:
                raise ValueError(f"more than {_MOST_ALIASES} aliases")
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:
            raise ValueError(f"a mapping of more than {_MOST_KEYS} keys")
