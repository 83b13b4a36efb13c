"""Errors that a user can meet. All say which field, which value, and what is allowed, in one line.

RegionalError
├── BadInput       the job, a mask or a setting is wrong; nothing was loaded yet
│   └── BadJob     all that is wrong with a job
├── ModelError     the model folder cannot be used
└── StoreError     the store cannot be read or written
"""

from __future__ import annotations

import reprlib


class RegionalError(Exception):
    """Base of all errors meant for a person.

    `field` is a dotted path (`regions.0.mask.width`), `value` what was found there, `allowed` what
    would be accepted.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field}: {_short(value)} is not allowed; allowed: {allowed}")


class BadInput(RegionalError):
    """A job, a mask or a setting that cannot be rendered."""


class BadJob(BadInput):
    """All mistakes of a job; the first one is the exception's own message."""

    def __init__(self, mistakes: list[BadInput]) -> None:
        self.mistakes = mistakes
        super().__init__(mistakes[0].field, mistakes[0].value, mistakes[0].allowed)

    def __str__(self) -> str:
        return str(self.mistakes[0])


class ModelError(RegionalError):
    """A model folder that cannot be used."""


class StoreError(RegionalError):
    """A store that cannot be read or written."""


def _short(value: object, limit: int = 80) -> str:
    # A value may be nested without end, or an integer too long to print.
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = limit
    try:
        text = " ".join(shown.repr(value).split())
    except ValueError:
        text = "a very long number"
    return text if len(text) <= limit else text[: limit - 1] + "…"
