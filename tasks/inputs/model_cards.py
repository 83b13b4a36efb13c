"""Model cards: small YAML files that name the files of one model, as ComfyUI keeps them apart.

A card is what a job's `model` names, so jobs stay short and a model has one name on all machines. Its own names are
looked for beside it, then in each of `REGIONAL_MODEL_FOLDERS`, and there in the folders that ComfyUI has for the kind.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.single_file.split import MOST_TEXT_ENCODERS, PartFiles
from prefect_regional_diffusion.sampling_core.text.plain_text import plain_value
from prefect_regional_diffusion.tasks.inputs.file_names import beside
from prefect_regional_diffusion.tasks.inputs.file_search import FolderKind, find_place
from prefect_regional_diffusion.tasks.inputs.path_policy import is_url
from prefect_regional_diffusion.tasks.inputs.safe_yaml import read_yaml
from prefect_regional_diffusion.tasks.machine.regular_files import NoRegularFileError, open_regular

SUFFIXES = (".yaml", ".yml")
MOST_BYTES = 16_384
_Name = Annotated[str, Field(min_length=1, max_length=1000)]


class ModelCard(BaseModel):
    """The names in a card: a checkpoint or a network, and the parts that are in files of their own."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    checkpoint: _Name | None = None
    network: _Name | None = None
    text_encoders: Annotated[list[_Name], Field(max_length=MOST_TEXT_ENCODERS)] = []
    vae: _Name | None = None
    configurations: _Name | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> ModelCard:
        if (self.checkpoint is None) == (self.network is None):
            raise ValueError("either checkpoint (a file with all parts, or most) or network (the denoiser alone)")
        return self


def is_card(place: str) -> bool:
    """Whether a model's place is a card."""
    return place.lower().endswith(SUFFIXES) and Path(place).is_file()


def card_files(field: str, place: str) -> PartFiles:
    """Where the files that a card at a real path names lie. Raises BadInput or ModelError.

    Configurations and tokenizers are in the folder that it names, or in that of its own name beside it.
    """
    card = _read(field, place)
    path = Path(place)

    def find(part: str, name: str, kind: FolderKind) -> str:
        full_name = name if Path(name).is_absolute() or is_url(name) else beside(str(path.parent), name)
        return find_place(f"{field}.{part}", full_name, kind)

    kind: FolderKind = "network" if card.checkpoint is None else "checkpoint"
    weights = find(kind, card.checkpoint or card.network or "", kind)
    return PartFiles(
        weights=weights,
        configurations=(
            find("configurations", card.configurations, "model") if card.configurations else str(path.with_suffix(""))
        ),
        text_encoders=tuple(
            find(f"text_encoders.{number}", name, "text encoder") for number, name in enumerate(card.text_encoders)
        ),
        vae=find("vae", card.vae, "vae") if card.vae else None,
    )


def _read(field: str, place: str) -> ModelCard:
    def unusable(problem: str) -> ModelError:
        return ModelError(field, place, f"is no model card that can be read: {problem}")

    try:
        with os.fdopen(open_regular(place), "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except NoRegularFileError as error:
        raise unusable(f"it is {error.kind}") from error
    except OSError as error:
        raise unusable(str(error.strerror)) from error
    if len(data) > MOST_BYTES:
        raise unusable(f"it has more than {MOST_BYTES} bytes")
    try:
        return ModelCard.model_validate(read_yaml(data.decode(), MOST_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where} is {plain_value(first['input'])}: {first['msg']}" if where else first["msg"]
        raise unusable(f"{what} (a card has checkpoint or network, text_encoders, vae, configurations)") from None
    except ValueError as error:
        raise unusable(str(error)) from error
