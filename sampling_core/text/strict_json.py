"""JSON that somebody else has written, read without surprises."""

from __future__ import annotations

import json
from typing import Any


def parse_mapping(content: bytes) -> dict[str, Any]:
    """The object that UTF-8 JSON text holds. Raises ValueError, with a short reason, for anything else.

    Refused are names that appear twice in one object, nesting that exhausts the parser, and text with lone
    surrogates, which no library can pass on. `Infinity` and `NaN` pass, because schedulers write them: whoever reads a
    number says whether it has to be finite.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=each_once)
        if b"\\u" in content:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from None
    if not isinstance(value, dict):
        raise ValueError("not a mapping")  # noqa: TRY004 - of all that is wrong with the text, this is one more
    return value


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose names all differ. Raises ValueError for others, of which `json.loads` takes the last."""
    mapping: dict[str, Any] = {}
    for name, value in pairs:
        if name in mapping:
            raise ValueError(f"the key {name[:80]!r} is there twice")
        mapping[name] = value
    return mapping
