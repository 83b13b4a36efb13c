r"""Weights as ComfyUI reads them.

`(words)` multiplies the weight around it by 1.1; `(words:1.3)` has the weight 1.3, whatever is around it; `\(` and `\)`
are parentheses of the text. A parenthesis without its counterpart is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from prefect_regional_diffusion.sampling_core.text.prompt_spans import EMPHASIS, NUMBER, Words, check_depth

_UNITS = re.compile(r"\\[()]|[()]|[^()\\]+|\\")
"""A parenthesis of the text, one that groups, or other text."""


def comfyui_spans(prompt: str) -> list[Words]:
    """The spans of a prompt, none of them empty. Raises PromptError for parentheses too deep within each other."""
    return list(_weighted(_UNITS.findall(prompt), 1.0, 0))


def _weighted(units: Sequence[str], weight: float, depth: int) -> Iterator[Words]:
    check_depth(depth)
    for item in _items(units):
        if len(item) > 1 and item[0] == "(" and item[-1] == ")":
            inner, number = _number(item[1:-1])
            yield from _weighted(inner, weight * EMPHASIS if number is None else number, depth + 1)
        else:
            yield Words("".join(unit[1:] if unit in (r"\(", r"\)") else unit for unit in item), weight)


def _items(units: Sequence[str]) -> Iterator[Sequence[str]]:
    """Groups in parentheses and what is between them, at the outermost level.

    After a closing parenthesis too many the level is below that of the text, and nothing groups until it is back there.
    A group that is never closed goes on to the end.
    """
    first = level = 0
    for i, unit in enumerate(units):
        if unit == "(":
            if level == 0 and i > first:
                yield units[first:i]
                first = i
            level += 1
        elif unit == ")":
            level -= 1
            if level == 0:
                yield units[first : i + 1]
                first = i + 1
    if first < len(units):
        yield units[first:]


def _number(inner: Sequence[str]) -> tuple[Sequence[str], float | None]:
    """What is in parentheses without the weight at its end, and that weight. A weight alone is text."""
    *before, last = inner or [""]
    head, colon, number = last.rpartition(":")
    if not colon or not NUMBER.fullmatch(number) or not (head or before):
        return inner, None
    return [*before, head] if head else before, float(number)
