"""Errors that a user can meet. All say which field, which value, and what is allowed, in one line.

RegionalError
├── BadInput       the job, a mask or a setting is wrong; nothing was loaded yet
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
