"""Finds the file of a model by its name: the name as a path, in a folder for models, or in a bucket."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Literal

from prefect_regional_diffusion.sampling_core.errors import BadInput, ModelError
from prefect_regional_diffusion.tasks.inputs.file_names import typed_name
from prefect_regional_diffusion.tasks.inputs.path_policy import is_url, lora_place, model_place
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.storage.fetched_models import fetched

FolderKind = Literal["model", "checkpoint", "network", "text encoder", "vae", "LoRA"]
_FOLDERS: Mapping[FolderKind, tuple[str, ...]] = {
    "model": ("checkpoints", "diffusers"),
    "checkpoint": ("checkpoints",),
    "network": ("diffusion_models", "unet"),
    "text encoder": ("text_encoders", "clip"),
    "vae": ("vae",),
    "LoRA": ("loras",),
}
"""Below a folder for models, where ComfyUI keeps files of each kind."""


def find_place(field: str, name: str, kind: FolderKind) -> str:
    """The real path of the file called `name`. Raises BadInput if it may not be named, ModelError if there is none."""
    place = existing_place(field, name, kind)
    if place is None:
        raise missing(field, name, kind)
    return place


def existing_place(field: str, name: str, kind: FolderKind) -> str | None:
    """The same; None if there is none. Raises BadInput for a file whose link leads out of the roots."""
    place_of = _place_function(kind)
    if is_url(name):
        return fetched(field, place_of(field, name))
    with suppress(BadInput):
        place = place_of(field, name)
        if os.path.lexists(place):
            return place
    for candidate in _candidates(name, kind):
        if os.path.lexists(candidate):
            return place_of(field, candidate)
    return None


def missing(field: str, name: str, kind: FolderKind) -> ModelError:
    """The error for a file that does not exist. Raises BadInput for a name that is not allowed."""
    place, folders = _place_function(kind)(field, name), settings().model_folders
    folders_text = f", nor in REGIONAL_MODEL_FOLDERS ({', '.join(folders)})" if folders else ""
    hint = " (`embedded` is the one that is always there)" if field.rpartition(".")[2] == "model" else ""
    return ModelError(field, place, f"does not exist{folders_text}{hint}")


def _place_function(kind: FolderKind) -> Callable[[str, str], str]:
    return lora_place if kind == "LoRA" else model_place


def _candidates(name: str, kind: FolderKind) -> Iterator[str]:
    typed_path = typed_name(name)
    if typed_path is not None and ".." not in PurePath(typed_path).parts:
        for folder in settings().model_folders:
            for below in ("", *_FOLDERS[kind]):
                yield str(PurePath(folder, below, typed_path))
