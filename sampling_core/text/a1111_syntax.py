r"""Weights as Automatic1111's web UI reads them.

`(words)` multiplies the weight of the words by 1.1, `(words:1.3)` by 1.3, `[words]` divides it by 1.1, and a backslash
makes any of the brackets text. Brackets that are still open at the end count as closed there; one that closes nothing
is text. `BREAK` begins a new chunk. What would change with the step, or ask for another network, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from prefect_regional_diffusion.sampling_core.text.prompt_spans import (
    EMPHASIS,
    NUMBER,
    Break,
    PromptError,
    Span,
    Words,
    check_depth,
)

_UNITS = re.compile(rf"\\[()\[\]\\]|\\|[()\[\]]|:{NUMBER.pattern}\)|[^\\()\[\]:]+|:")
"""An escaped sign, a bracket, a weight with the parenthesis that it closes, or text."""
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_FACTORS = {"(": EMPHASIS, "[": 1 / EMPHASIS}
_OPENS = {")": "(", "]": "["}
_REFUSED = {
    "prompt editing, [from:to:when]": re.compile(r"(?<!\\):\s*(?:\d+(?:\.\d*)?|\.\d+)\s*\]"),
    "alternating words, [one|other]": re.compile(r"(?<!\\)\[[^\[\]|]*\|"),
    "prompts joined by AND (regions have prompts of their own)": re.compile(r"\bAND\b"),
    "other networks, <kind:name>": re.compile(r"<(?:lora|lyco|hypernet):"),
}


def a1111_spans(prompt: str) -> list[Span]:
    """The spans of a prompt, none of them empty. Raises PromptError."""
    for feature, pattern in _REFUSED.items():
        if refused := pattern.search(prompt):
            raise PromptError(f"a prompt without {feature} ({refused[0].strip()[:40]!r} is there)")
    spans = list[Span]()
    open_brackets: dict[str, list[int]] = {"(": [], "[": []}
    for unit in _UNITS.findall(prompt):
        number = unit[1:-1] if unit.startswith(":") and unit.endswith(")") else None
        closes = "(" if number is not None else _OPENS.get(unit)
        if unit in open_brackets:
            open_brackets[unit].append(len(spans))
            check_depth(len(open_brackets[unit]))
        elif closes is not None and open_brackets[closes]:
            factor = _FACTORS[closes] if number is None else float(number)
            _multiply(spans, open_brackets[closes].pop(), factor)
        else:
            spans += _text(unit)
    for bracket, starts in open_brackets.items():
        for start in starts:
            _multiply(spans, start, _FACTORS[bracket])
    return list(_merge_words(spans))


def _multiply(spans: list[Span], start: int, factor: float) -> None:
    for i in range(start, len(spans)):
        span = spans[i]
        if not isinstance(span, Break):
            spans[i] = span._replace(weight=span.weight * factor)


def _text(unit: str) -> Iterator[Span]:
    """A unit that is text; of an escaped sign the sign."""
    for i, text in enumerate(_BREAK.split(unit.removeprefix("\\"))):
        if i > 0:
            yield Break()
        if text:
            yield Words(text, 1.0)


def _merge_words(spans: list[Span]) -> Iterator[Span]:
    """Neighbours of one weight are one text: words are not taken apart by signs that mean nothing."""
    last: Words | None = None
    for span in spans:
        if isinstance(span, Words) and last is not None and last.weight == span.weight:
            last = Words(last.text + span.text, span.weight)
            continue
        if last is not None:
            yield last
        last = span if isinstance(span, Words) else None
        if last is None:
            yield span
    if last is not None:
        yield last
