"""Errors that a user can meet: one line each, in words of its kind.

RegionalError
├── BadInput              a value that is not allowed: `steps: 0 is not allowed; allowed: 1 or more`
│   └── BadJob            all that is wrong with a job
├── BadBatch              all that is wrong with the jobs of several files
└── UnusableError         what was named rightly cannot be used: a name, and what is wrong with it
    ├── FileError         a job file or an image: `init_image: /photos/a.png does not exist`
    ├── ModelError        a model folder or a LoRA: `model: /models/sd has no unet/config.json`
    ├── StoreError        a store or a folder for pictures: `store s3://x does not answer (tried for 600 s): ...`
    └── ServerError       a Prefect server: `Prefect server http://127.0.0.1:4200/api does not answer`

Fields, names and values may come from others; the line is made of them by `sampling_core.text.plain_text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import ClassVar

from prefect_regional_diffusion.sampling_core.text.plain_text import plain, plain_name, plain_path, plain_value

MOST_ALLOWED = 1200
"""Characters of what is allowed: the names of all samplers and more."""

MOST_PROBLEM = 600
"""Characters of what is wrong with something."""


class RegionalError(Exception):
    """Base of all errors meant for a person; `field` is what the error is about, such as `regions.0.mask.width`."""

    def __init__(self, field: str) -> None:
        self.field = field

    @property
    def mistakes(self) -> Sequence[RegionalError]:
        """The errors that this one stands for, each of which is one line."""
        return (self,)

    def within(self, prefix: str) -> RegionalError:
        """The same error of a field that has this before its name: of the job or the file that it is part of."""
        moved = copy(self)
        moved.field = prefix + self.field
        return moved


class BadInput(RegionalError):
    """A value of a job, a mask, an option or a setting that is not allowed.

    `field` is a dotted path (`regions.0.mask.width`), `value` what was found there, `allowed` what would be accepted.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(field)
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        found, allowed = plain_value(self.value), plain(self.allowed, MOST_ALLOWED)
        return f"{plain_path(self.field)}: {found} is not allowed; allowed: {allowed}"


class BadJob(BadInput):
    """All mistakes of a job; the first one is the exception's own message."""

    def __init__(self, mistakes: Sequence[BadInput]) -> None:
        self._mistakes = mistakes
        super().__init__(mistakes[0].field, mistakes[0].value, mistakes[0].allowed)

    @property
    def mistakes(self) -> Sequence[RegionalError]:
        return self._mistakes

    def __str__(self) -> str:
        return str(self._mistakes[0])


class BadBatch(RegionalError):
    """All that is wrong with the jobs of several files, which each mistake names; the first one is the message."""

    def __init__(self, mistakes: Sequence[RegionalError]) -> None:
        self._mistakes = mistakes
        super().__init__(mistakes[0].field)

    @property
    def mistakes(self) -> Sequence[RegionalError]:
        return self._mistakes

    def __str__(self) -> str:
        return str(self._mistakes[0])


class UnusableError(RegionalError):
    """What was named rightly and cannot be used: `field` says what it is, `problem` goes on after its `name`."""

    BETWEEN: ClassVar[str] = ": "
    """Follows a field of a job; words that only say what the name is of have a blank there."""

    def __init__(self, field: str, name: str | Path, problem: str) -> None:
        super().__init__(field)
        self.name = str(name)
        self.problem = problem

    def __str__(self) -> str:
        return f"{plain_path(self.field)}{self.BETWEEN}{plain_name(self.name)} {plain(self.problem, MOST_PROBLEM)}"


class FileError(UnusableError):
    """A job file or an image that does not exist, is damaged, or is something else."""


class ModelError(UnusableError):
    """A model folder, or a LoRA, that cannot be used."""


class StoreError(UnusableError):
    """A store, or a folder for pictures, that cannot be read or written."""

    BETWEEN = " "


class ServerError(UnusableError):
    """A Prefect server that does not answer, or refuses."""

    BETWEEN = " "
