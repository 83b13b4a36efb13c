"""What prompts are made of, whatever dialect they are written in."""

from __future__ import annotations

import re
from typing import NamedTuple

EMPHASIS = 1.1
"""What a pair of parentheses multiplies a weight by."""
DEEPEST = 100
"""Brackets within each other: more than anybody writes, and fewer than Python's recursion bears."""

NUMBER = re.compile(r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?\s*")
"""A weight as it is written. Each text matches it in one way at most, so that no text takes long."""


class Words(NamedTuple):
    """Text that is tokenized by itself; 1 is the weight of text without signs."""

    text: str
    weight: float


class Embedding(NamedTuple):
    """The vectors of a textual inversion, by the name of its file without a suffix."""

    name: str
    weight: float


class Break(NamedTuple):
    """What follows is encoded in a chunk of its own."""


Span = Words | Embedding | Break


class PromptError(ValueError):
    """A prompt that its dialect has no reading for; the text says what would be allowed."""


def check_depth(depth: int) -> None:
    """Raise PromptError for brackets that are too deep within each other."""
    if depth > DEEPEST:
        raise PromptError(f"at most {DEEPEST} brackets within each other")
