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
from prefect_regional_diffusion.tasks.machine.model_catalog import catalog
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
    return _place_in_catalog(field, name, kind)


def _place_in_catalog(field: str, name: str, kind: FolderKind) -> str | None:
    """Where the file lies that the catalog calls so; None if it has no such name, or a repository of that name."""
    listed = listed_place(name)
    if listed is None or not (is_url(listed) or listed.startswith("/")):
        return None
    try:
        place = _place_function(kind)(field, listed)
    except BadInput as error:
        # Jobs come from others than catalogs do: they are not told where things are.
        raise BadInput(field, name, f"{error.allowed}; the catalog's place for it is not under these") from None
    if is_url(place):
        return fetched(field, place)
    if not os.path.lexists(place):
        raise ModelError(field, name, "does not exist: this machine has nothing at the catalog's place for it")
    return place


def listed_place(name: str) -> str | None:
    """What the catalog has for a name, which is nowhere on this machine."""
    typed_path = typed_name(name)
    return catalog().models.get(typed_path) if typed_path is not None else None


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
