"""Finds a job's `model`: a folder or file, here or in the machine's model folders, or a hub's repository.

A name is looked for as a path, then in each of `REGIONAL_MODEL_FOLDERS` (`file_search`); `org/name`,
`org/name@revision` and `org/name:variant` are then looked for in the cache that Hugging Face's tools share. Nothing is
fetched from the hub unless `REGIONAL_HUB_DOWNLOADS` says so.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.errors import BadInput, ModelError
from prefect_regional_diffusion.tasks.inputs.file_names import typed_name
from prefect_regional_diffusion.tasks.inputs.file_search import existing_place, listed_place, missing
from prefect_regional_diffusion.tasks.inputs.path_policy import model_place
from prefect_regional_diffusion.tasks.machine.settings import settings

_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_REPOSITORY = re.compile(
    rf"(?P<name>{_PART}/{_PART})(@(?P<revision>[A-Za-z0-9][A-Za-z0-9_./-]{{0,99}}))?(:(?P<variant>[a-z0-9_]{{1,20}}))?"
)
_READ = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""Files of a repository that are fetched: what is loaded of a model, and no code and no pickles."""


class FoundModel(NamedTuple):
    """A model's place, and the variant of its weights that is meant, such as `fp16`."""

    place: str
    variant: str | None = None


def find_model(field: str, name: str) -> FoundModel:
    """The model that a job calls `name`. Raises BadInput or ModelError for one that may not be named, or is nowhere."""
    place = existing_place(field, name, "model")
    if place is not None:
        return FoundModel(place)
    typed_path = listed_place(name) or typed_name(name)
    repository = (
        _REPOSITORY.fullmatch(typed_path) if typed_path is not None and ".." not in PurePath(typed_path).parts else None
    )
    if typed_path is not None and repository is not None:
        return _find_in_cache(field, typed_path, repository)
    raise missing(field, name, "model")


def _find_in_cache(field: str, typed_path: str, repository: re.Match[str]) -> FoundModel:
    """A repository of the hub, which has a folder for each revision in a cache."""
    # Imported late: it takes a while, and few jobs need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        model_place(field, HF_HUB_CACHE)
    except BadInput as error:
        # The value would tell where the cache is.
        raise BadInput(field, typed_path, f"{error.allowed}; the Hugging Face cache is not under these") from error
    downloads = settings().hub_downloads
    try:
        place = snapshot_download(
            repository["name"],
            revision=repository["revision"],
            allow_patterns=_READ,
            local_files_only=not downloads,
        )
    except Exception as error:  # whatever the library raises: the repository is not here
        reason = type(error).__name__ if downloads else "nothing is fetched unless REGIONAL_HUB_DOWNLOADS is true"
        raise ModelError(
            field, typed_path, f"does not exist, nor does such a repository in the Hugging Face cache ({reason})"
        ) from error
    return FoundModel(model_place(field, place), repository["variant"])
