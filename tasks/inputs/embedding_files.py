"""Textual inversions that prompts name: files that this machine has, read without running anything that is in them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load
from torch import Tensor

from prefect_regional_diffusion.sampling_core.errors import BadInput, FileError
from prefect_regional_diffusion.sampling_core.models.textual_inversion import TextualInversion, textual_inversion
from prefect_regional_diffusion.tasks.inputs.path_policy import embedding_places
from prefect_regional_diffusion.tasks.machine.regular_files import NoRegularFileError, open_regular

MOST_BYTES = 2**24
"""Of one file: enough for a thousand vectors for two text encoders."""
_PART = r"\w[\w.+()'~-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
"""No part begins with a dot, so that none leads out of a folder."""
_SUFFIX = ".safetensors"
_PICKLED = (".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class EmbeddingFile:
    """The tensors in a file, by name, and the file's SHA-256."""

    tensors: Mapping[str, Tensor]
    digest: str


def read_embedding(field: str, name: str) -> EmbeddingFile:
    """The file of a textual inversion that a prompt names. Raises FileError, or BadInput for a bad name or size."""
    if name.lower().endswith(_PICKLED):
        raise _bad_input(field, name, f"embedding:NAME for a file NAME{_SUFFIX}: others may have code in them")
    if _NAME.fullmatch(name) is None:
        raise _bad_input(field, name, "embedding:NAME with a plain name, or folders and a name")
    places = embedding_places(f"{name}{_SUFFIX}")
    for place in places:
        try:
            with os.fdopen(open_regular(place), "rb") as file:
                data = file.read(MOST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, NoRegularFileError) as error:
            reason = error.kind if isinstance(error, NoRegularFileError) else error.strerror
            raise _file_error(field, name, f"cannot be read: {reason}") from error
        if len(data) > MOST_BYTES:
            raise _bad_input(field, name, f"a file of at most {MOST_BYTES} bytes")
        return EmbeddingFile(_tensors(field, name, data), hashlib.sha256(data).hexdigest())
    pickled_suffixes = [suffix for suffix in _PICKLED for place in places if Path(place).with_suffix(suffix).is_file()]
    hint = f"; {name}{pickled_suffixes[0]} is not read: it may have code in it" if pickled_suffixes else ""
    where = "here and in REGIONAL_ASSET_ROOTS, and in a folder embeddings there"
    raise _file_error(field, name, f"does not exist: {name}{_SUFFIX} was looked for {where}{hint}")


def fitted(field: str, name: str, file: EmbeddingFile, widths: Mapping[str, int]) -> TextualInversion:
    """The vectors that a model's text encoders are given. Raises BadInput for a file of another model.

    `widths` are the features of the text encoders.
    """
    try:
        return textual_inversion(file.tensors, widths)
    except ValueError as error:
        raise _bad_input(field, name, str(error)) from error


def _tensors(field: str, name: str, data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except Exception as error:  # what the library raises for damaged files
        reason = " ".join(str(error).split())[:120]
        raise _file_error(field, name, f"is a damaged safetensors file: {reason}") from error


def _file_error(field: str, name: str, problem: str) -> FileError:
    return FileError(field, f"embedding:{name}", problem)


def _bad_input(field: str, name: str, allowed: str) -> BadInput:
    return BadInput(field, f"embedding:{name}", allowed)
