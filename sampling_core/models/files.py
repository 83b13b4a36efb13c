"""The files of a model folder: all are listed before the first is read, and only the listed files are read.

Not `tasks.machine.regular_files`, which opens any regular file: here it must be the very one that was listed.
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
from prefect_regional_diffusion.sampling_core.models.tensor_info import TensorInfo
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
    """A regular file: its name in the folder, its real path, and its identity when the folder was listed."""

    name: str
    place: str
    identity: Identity


@dataclass(frozen=True)
class ModelFiles:
    """All regular files below a model folder, or one file. `model` is what a person calls it, in `job_field` of a job.

    A model in one file is represented as the folder that it could be: `derived_files` are configurations that follow
    from its tensors, by name, and `parts` its tensors, by folder and by the names that a folder has for them.
    """

    model: str
    files: tuple[File, ...]
    derived_files: Mapping[str, bytes] = field(default_factory=dict[str, bytes], compare=False)
    parts: Mapping[str, Mapping[str, TensorInfo]] = field(
        default_factory=dict[str, Mapping[str, TensorInfo]], compare=False
    )
    job_field: str = "model"

    @cached_property
    def _by_name(self) -> dict[str, File]:
        return {file.name: file for file in self.files}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name or name in self.derived_files

    def read(self, name: str, most: int) -> bytes:
        """The content of a file of at most so many bytes. Raises ModelError."""
        if name not in self:
            raise self.error(f"has no {name}")
        if name not in self._by_name:
            return self.derived_files[name]
        size = self._by_name[name].identity.size
        if size > most:
            raise self.error(f"has a {name} of {size} bytes, more than {most}")
        with self.open_unchanged(name) as descriptor, open(descriptor, "rb", closefd=False) as stream:
            return stream.read(size)

    def mapping(self, name: str, most: int = MOST_CONFIGURATION_BYTES) -> dict[str, Any]:
        """The object in a JSON file. Raises ModelError."""
        content = self.read(name, most)
        try:
            return parse_mapping(content)
        except ValueError as error:
            raise self.error(f"has a {name} that cannot be read: {error}") from error

    @contextmanager
    def open_unchanged(self, name: str) -> Generator[int]:
        """A descriptor of a file. Raises ModelError if the file was replaced or changed before the end of the block."""
        file = self._by_name[name]
        with _open_if_unchanged(file) as descriptor:
            if descriptor is None:
                raise self._changed_error(name)
            yield descriptor
            if Identity.of(os.fstat(descriptor)) != file.identity:
                raise self._changed_error(name)

    def digest(self, name: str) -> bytes:
        """SHA-256 of a file's content."""
        if name not in self._by_name:
            return hashlib.sha256(self.derived_files[name]).digest()
        digest = _digest(self._by_name[name])
        if digest is None:
            raise self._changed_error(name)
        return digest

    def error(self, problem: str) -> ModelError:
        """The error that says what is wrong with the model: `has no unet/config.json`."""
        return ModelError(self.job_field, self.model, problem)

    def _changed_error(self, name: str) -> ModelError:
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
    """List the files below a folder, at every depth. `job_field` is what names it in a job.

    Raises ModelError for what is neither a file nor a folder, for too many files, and for links in a circle; and what
    `follow` raises.
    """
    regular_files: list[File] = []
    top = os.path.realpath(folder)
    num_entries = 0

    def refusal(name: str, problem: str) -> ModelError:
        return ModelError(job_field, model, f"{problem} ({name!r:.80})")

    def walk(place: str, prefix: str, above: tuple[str, ...]) -> None:
        nonlocal num_entries
        with os.scandir(place) as entries:
            for entry in entries:
                name = prefix + entry.name
                num_entries += 1
                if num_entries > MOST_FILES or len(above) > MOST_DEPTH:
                    raise refusal(name, f"has more than {MOST_FILES} files, or is more than {MOST_DEPTH} folders deep")
                if not name.isprintable():
                    raise refusal(name, "has a file whose name cannot be printed")
                real_path = follow(entry.path) if entry.is_symlink() else entry.path
                try:
                    facts = Path(real_path).lstat()
                except FileNotFoundError:
                    continue  # a link that leads nowhere
                if stat.S_ISDIR(facts.st_mode):
                    if real_path in above:
                        raise refusal(name, "has links in a circle")
                    walk(real_path, f"{name}/", (*above, real_path))
                elif stat.S_ISREG(facts.st_mode):
                    regular_files.append(File(name, real_path, Identity.of(facts)))
                else:
                    raise refusal(name, "has a pipe, a socket or a device in it")

    walk(top, "", (top,))
    return ModelFiles(model, tuple(sorted(regular_files)), job_field=job_field)


def of_variant(files: ModelFiles, variant: str) -> ModelFiles:
    """The files of a folder with weights of this variant under the names that weights have without one.

    Raises ModelError for a folder without such weights.
    """
    endings = {f".{variant}.safetensors": ".safetensors", f".index.{variant}.json": ".index.json"}
    variant_files: dict[str, File] = {}
    for file in files.files:
        for ending, plain_ending in endings.items():
            if file.name.endswith(ending):
                name = file.name.removesuffix(ending) + plain_ending
                variant_files[name] = file._replace(name=name)
    if not variant_files:
        raise files.error(f"has no weights of the variant {variant} (*.{variant}.safetensors)")
    # Where only a part has the variant, the others are used as they are; shards keep their names.
    others = [file for file in files.files if file.name not in variant_files]
    return ModelFiles(files.model, tuple(sorted([*others, *variant_files.values()])), job_field=files.job_field)


@contextmanager
def _open_if_unchanged(file: File) -> Generator[int | None]:
    """A descriptor of a file; None if something else lies there by now."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(file.place, flags)
    except OSError:
        yield None
        return
    try:
        is_same = (
            Identity.of(os.fstat(descriptor)) == file.identity and _real_path(descriptor, file.place) == file.place
        )
        yield descriptor if is_same else None
    finally:
        os.close(descriptor)


def _real_path(descriptor: int, path: str) -> str:
    """Where an open file lies: a folder on the way may have been replaced by a link. Exact on Linux."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - Path would change its spelling
    except OSError:
        return os.path.realpath(path)


@lru_cache(maxsize=256)
def _digest(file: File) -> bytes | None:
    """SHA-256 of a file; its identity is part of the cache key, so that a changed file is read again."""
    with _open_if_unchanged(file) as descriptor:
        if descriptor is None:
            return None
        with open(descriptor, "rb", closefd=False) as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()
        return digest if Identity.of(os.fstat(descriptor)) == file.identity else None
