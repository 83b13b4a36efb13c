"""The files of a model folder: all are looked at before the first is read, and what was looked at is what is read.

Not `tasks.machine.regular_files`, which opens any regular file: here it must be the very one that was looked at.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.stored import Stored
from prefect_regional_diffusion.sampling_core.text.strict_json import parse_mapping

MOST_FILES = 10_000
MOST_DEPTH = 16
MOST_CONFIGURATION_BYTES = 2**20
MOST_TOKENIZER_BYTES = 2**25

Follow = Callable[[str], str]
"""The real path behind a link; raises if it may not be followed."""


class Identity(NamedTuple):
    """Which content a path stands for: any write gives another one."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, facts: os.stat_result) -> Identity:
        return cls(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


class File(NamedTuple):
    """A regular file: its name in the folder, its real path, and what lay there when the folder was looked at."""

    name: str
    place: str
    identity: Identity


@dataclass(frozen=True)
class ModelFiles:
    """All regular files below a model folder, or one file. `model` is what a person calls it, in `job_field` of a job.

    A model in one file is known as the folder that it could be: `written` are configurations that follow from its
    tensors, by name, and `parts` its tensors, by folder and by the names that a folder has for them.
    """

    model: str
    files: tuple[File, ...]
    written: Mapping[str, bytes] = field(default_factory=dict[str, bytes], compare=False)
    parts: Mapping[str, Mapping[str, Stored]] = field(default_factory=dict[str, Mapping[str, Stored]], compare=False)
    job_field: str = "model"

    @cached_property
    def _by_name(self) -> dict[str, File]:
        return {file.name: file for file in self.files}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name or name in self.written

    def read(self, name: str, most: int) -> bytes:
        """The content of a file of at most so many bytes. Raises ModelError."""
        if name not in self:
            raise self.error(f"has no {name}")
        if name not in self._by_name:
            return self.written[name]
        size = self._by_name[name].identity.size
        if size > most:
            raise self.error(f"has a {name} of {size} bytes, more than {most}")
        with self.opened(name) as descriptor, open(descriptor, "rb", closefd=False) as stream:
            return stream.read(size)

    def mapping(self, name: str, most: int = MOST_CONFIGURATION_BYTES) -> dict[str, Any]:
        """The object in a JSON file. Raises ModelError."""
        content = self.read(name, most)
        try:
            return parse_mapping(content)
        except ValueError as error:
            raise self.error(f"has a {name} that cannot be read: {error}") from error

    @contextmanager
    def opened(self, name: str) -> Generator[int]:
        """A descriptor of a file that is still what it was, from the beginning of the block to its end."""
        file = self._by_name[name]
        with _opened(file) as descriptor:
            if descriptor is None:
                raise self._moved(name)
            yield descriptor
            if Identity.of(os.fstat(descriptor)) != file.identity:
                raise self._moved(name)

    def digest(self, name: str) -> bytes:
        """SHA-256 of a file's content."""
        if name not in self._by_name:
            return hashlib.sha256(self.written[name]).digest()
        found = _digest(self._by_name[name])
        if found is None:
            raise self._moved(name)
        return found

    def error(self, problem: str) -> ModelError:
        """The error that says what is wrong with the model: `has no unet/config.json`."""
        return ModelError(self.job_field, self.model, problem)

    def _moved(self, name: str) -> ModelError:
        return self.error(f"has a {name} that changed while it was read")


def find_file(job_field: str, name: str, place: str) -> ModelFiles:
    """Look at one file at its real path. Raises ModelError for what is no regular file."""
    try:
        facts = os.lstat(place)
    except OSError as error:
        raise ModelError(job_field, name, "does not exist") from error
    if not stat.S_ISREG(facts.st_mode):
        raise ModelError(job_field, name, "is a folder, a pipe, a socket or a device, not a file")
    return ModelFiles(name, (File(Path(place).name, place, Identity.of(facts)),), job_field=job_field)


def find_files(model: str, folder: Path, follow: Follow, job_field: str = "model") -> ModelFiles:
    """Look at all that lies below a folder, at every depth. `job_field` is what names it in a job.

    Raises ModelError for what is neither a file nor a folder, for too many files, and for links in a circle; and what
    `follow` raises.
    """
    found: list[File] = []
    top = os.path.realpath(folder)
    looked_at = 0

    def refusal(name: str, problem: str) -> ModelError:
        return ModelError(job_field, model, f"{problem} ({name!r:.80})")

    def walk(place: str, prefix: str, above: tuple[str, ...]) -> None:
        nonlocal looked_at
        with os.scandir(place) as entries:
            for entry in entries:
                name = prefix + entry.name
                looked_at += 1
                if looked_at > MOST_FILES or len(above) > MOST_DEPTH:
                    raise refusal(name, f"has more than {MOST_FILES} files, or is more than {MOST_DEPTH} folders deep")
                if not name.isprintable():
                    raise refusal(name, "has a file whose name cannot be printed")
                real = follow(entry.path) if entry.is_symlink() else entry.path
                try:
                    facts = Path(real).lstat()
                except FileNotFoundError:
                    continue  # a link that leads nowhere
                if stat.S_ISDIR(facts.st_mode):
                    if real in above:
                        raise refusal(name, "has links in a circle")
                    walk(real, f"{name}/", (*above, real))
                elif stat.S_ISREG(facts.st_mode):
                    found.append(File(name, real, Identity.of(facts)))
                else:
                    raise refusal(name, "has a pipe, a socket or a device in it")

    walk(top, "", (top,))
    return ModelFiles(model, tuple(sorted(found)), job_field=job_field)


def of_variant(files: ModelFiles, variant: str) -> ModelFiles:
    """The files of a folder with weights of this variant under the names that weights have without one.

    Raises ModelError for a folder without such weights.
    """
    spelled = {f".{variant}.safetensors": ".safetensors", f".index.{variant}.json": ".index.json"}
    renamed: dict[str, File] = {}
    for file in files.files:
        for ending, plain in spelled.items():
            if file.name.endswith(ending):
                name = file.name.removesuffix(ending) + plain
                renamed[name] = file._replace(name=name)
    if not renamed:
        raise files.error(f"has no weights of the variant {variant} (*.{variant}.safetensors)")
    # Where only a part has the variant, the others are used as they are; shards keep their names.
    others = [file for file in files.files if file.name not in renamed]
    return ModelFiles(files.model, tuple(sorted([*others, *renamed.values()])), job_field=files.job_field)


@contextmanager
def _opened(file: File) -> Generator[int | None]:
    """A descriptor of a file; None if something else lies there by now."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(file.place, flags)
    except OSError:
        yield None
        return
    try:
        same = Identity.of(os.fstat(descriptor)) == file.identity and _place(descriptor, file.place) == file.place
        yield descriptor if same else None
    finally:
        os.close(descriptor)


def _place(descriptor: int, asked: str) -> str:
    """Where an open file lies: a folder on the way may have been replaced by a link. Linux knows it for certain."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - Path would change its spelling
    except OSError:
        return os.path.realpath(asked)


@lru_cache(maxsize=256)
def _digest(file: File) -> bytes | None:
    """SHA-256 of a file; its identity is part of the question, so that a changed file is read again."""
    with _opened(file) as descriptor:
        if descriptor is None:
            return None
        with open(descriptor, "rb", closefd=False) as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()
        return digest if Identity.of(os.fstat(descriptor)) == file.identity else None
