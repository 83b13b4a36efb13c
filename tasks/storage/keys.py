"""Keys: what the objects of a store are called. They are built and checked here, and nothing else becomes a path.

A key has one of a few exact forms, whoever made it. What a record or a listing says is a string until one of these
classes has taken it, and `Store` takes nothing but keys.
"""

from __future__ import annotations

import re
import uuid
from typing import ClassVar, Self

HASH = "[0-9a-f]{64}"
"""SHA-256 in hex: all that names something in a store."""

_STEP = "[0-9]{5,9}"
_PROBE = "probe-[0-9a-f]{32}"
_NAME = r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,250}"
"""Of a file or folder that people name: not hidden, without separators and control characters."""
_LONGEST = 600
_PART = r"\.[0-9a-f]{32}\.part"


class BadKeyError(ValueError):
    """A string that is no key of its kind."""


class Key(str):
    """The name of something below a store. Raises BadKeyError for a string of another form."""

    __slots__ = ()
    form: ClassVar[re.Pattern[str]]
    extension: ClassVar[str] = ""
    """Of the object, where the key itself has none."""

    def __new__(cls, name: str) -> Self:
        if len(name) > _LONGEST or cls.form.fullmatch(name) is None:
            raise BadKeyError(f"{name[:80]!r} is no {cls.__name__}")
        return super().__new__(cls, name)

    @property
    def object_name(self) -> str:
        """The path below the store, with extension."""
        return f"{self}{self.extension}"


class TensorKey(Key):
    """Of tensors: the state after a step of a segment, masks, an encoded prompt, an init image."""

    __slots__ = ()
    form = re.compile(rf"latents/{HASH}/{_STEP}|(masks|prompts|starts)/{HASH}")
    extension = ".safetensors"


class RecordKey(Key):
    """Of the record of a run, or of a finished job and its pictures; JSON."""

    __slots__ = ()
    form = re.compile(rf"(runs|pictures)/{HASH}")
    extension = ".json"


class PictureKey(Key):
    """Of a picture, by the SHA-256 of its PNG file."""

    __slots__ = ()
    form = re.compile(rf"pictures/{HASH}\.png")


class LeftoverKey(Key):
    """Of a probe, and of what a writer that was killed left of any object."""

    __slots__ = ()
    form = re.compile(
        rf"{_PROBE}|(\.{_PROBE}|latents/{HASH}/\.{_STEP}\.safetensors|(masks|prompts|starts)/\.{HASH}\.safetensors"
        rf"|runs/\.{HASH}\.json|pictures/\.{HASH}\.(json|png)){_PART}"
    )


class OutputKey(Key):
    """Of a file in an output folder, or in a folder there, where people choose names; none of a store's own."""

    __slots__ = ()
    form = re.compile(rf"({_NAME}/)?{_NAME}\.(png|json)")


class Folder(Key):
    """What can be listed: everything, all states, the states of a segment, the records of all runs."""

    __slots__ = ()
    form = re.compile(rf"|latents|latents/{HASH}|runs")


EVERYTHING, ALL_STATES, ALL_RUNS = Folder(""), Folder("latents"), Folder("runs")


def states(segment: str) -> Folder:
    """Where the states of a segment are, by the segment's name."""
    return Folder(f"latents/{segment}")


def state(name: str) -> TensorKey:
    """Of a state, by its name: SEGMENT/STEP."""
    return TensorKey(f"latents/{name}")


def masks(digest: str) -> TensorKey:
    """Of masks and pictures, by what they were made of."""
    return TensorKey(f"masks/{digest}")


def prompt(digest: str) -> TensorKey:
    """Of an encoded prompt."""
    return TensorKey(f"prompts/{digest}")


def start(digest: str) -> TensorKey:
    """Of an init image's latent."""
    return TensorKey(f"starts/{digest}")


def run(digest: str) -> RecordKey:
    """Of a run's record."""
    return RecordKey(f"runs/{digest}")


def state_of(name: str) -> TensorKey:
    """Of a state, as a picture's record names it."""
    return state(name.removeprefix("latents/"))


def run_of(name: str) -> RecordKey:
    """Of a run's record, as a picture's record names it."""
    return run(name.removeprefix("runs/"))


def drawn(job_hash: str) -> RecordKey:
    """Of a finished job."""
    return RecordKey(f"pictures/{job_hash}")


def picture(digest: str) -> PictureKey:
    """Of a picture."""
    return PictureKey(f"pictures/{digest}.png")


def probe() -> LeftoverKey:
    """Of an object that is written to see whether one can; it is called like nothing else."""
    return LeftoverKey(f"probe-{uuid.uuid4().hex}")


def output(name: str, folder: str = "") -> OutputKey:
    """Of a file in an output folder, or in a folder there, by its name with extension."""
    return OutputKey(f"{folder}/{name}" if folder else name)


def parsed(object_name: str) -> Key | None:
    """The key of an object that a listing names by its path below the store; None if it is no store's own.

    Where a store lies at the top of a bucket, or pictures below a store, there are files of other people.
    """
    stem, dot, extension = object_name.rpartition(".")
    for kind, name in ((TensorKey, stem), (RecordKey, stem), (PictureKey, object_name), (LeftoverKey, object_name)):
        if kind.extension in ("", dot + extension) and len(name) <= _LONGEST and kind.form.fullmatch(name):
            return kind(name)
    return None


def step_of(name: str) -> int | None:
    """The step that a state's file is named after, without extension; None if it is no state's."""
    return int(name) if re.fullmatch(_STEP, name) else None
