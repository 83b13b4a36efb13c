"""Errors that a user can meet. All say which field, which value, and what is allowed, in one line.

Fields, values and what is allowed may come from others; the line is made of them by `sampling_core.text.plain_text`.

RegionalError
├── BadInput       the job, a mask or a setting is wrong; nothing was loaded yet
│   └── BadJob     all that is wrong with a job
├── ModelError     the model folder cannot be used
└── StoreError     the store cannot be read or written
"""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.text.plain_text import plain, plain_path, plain_value

MOST_ALLOWED = 1200
"""Characters of what is allowed: the names of all samplers and more."""


class RegionalError(Exception):
    """Base of all errors meant for a person.

    `field` is a dotted path (`regions.0.mask.width`), `value` what was found there, `allowed` what
    would be accepted.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(
            f"{plain_path(field)}: {plain_value(value)} is not allowed; allowed: {plain(allowed, MOST_ALLOWED)}"
        )


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
