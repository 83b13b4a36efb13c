"""A model in one file or in a few, opened as the folder that it could be: only headers are read.

Shapes tell widths and depths; what they do not tell (heads, activations, how latents are scaled) is as in the published
models, unless configurations lie in a folder beside the file: `NAME/` for `NAME.safetensors`, laid out as a model's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models import CLIP_TOKENIZER
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import INDEX
from prefect_regional_diffusion.sampling_core.models.families import FAMILIES
from prefect_regional_diffusion.sampling_core.models.family import Checkpoint
from prefect_regional_diffusion.sampling_core.models.files import File, Follow, Identity, ModelFiles, find_files
from prefect_regional_diffusion.sampling_core.models.single_file.clip import VOCABULARY
from prefect_regional_diffusion.sampling_core.models.single_file.layout import Configurations, Layout
from prefect_regional_diffusion.sampling_core.models.single_file.recognition import recognised
from prefect_regional_diffusion.sampling_core.models.single_file.split import (
    TEXT_ENCODER,
    VAE,
    WEIGHTS,
    PartFiles,
    put_together,
)
from prefect_regional_diffusion.sampling_core.models.t5_tokenizer import T5_TOKENIZER_FILES
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import (
    CLIP_TOKENIZER_FILES,
    CONFIGURATION,
    MERGES,
    TOKENIZER,
)
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import (
    VOCABULARY as VOCABULARY_FILE,
)

SUFFIXES = (".safetensors", ".sft")


def open_file(model: str, path: Path, follow: Follow = os.path.realpath) -> Checkpoint:
    """Check the header of a file, and find what lies in the folder beside it.

    `follow` is for links there. Raises ModelError for what is no whole model of a known family, and OSError.
    """
    return open_parts(model, path, PartFiles(str(path), str(path.with_suffix(""))), follow)


def open_parts(model: str, path: Path, parts: PartFiles, follow: Follow = os.path.realpath) -> Checkpoint:
    """The same of a model in several files, at their real paths. `path` is what names them."""
    places = {WEIGHTS: parts.weights} | ({VAE: parts.vae} if parts.vae else {})
    places |= {TEXT_ENCODER.format(number): place for number, place in enumerate(parts.text_encoders)}
    for place in places.values():
        if not place.lower().endswith(SUFFIXES):
            raise ModelError(
                "model", model, f"is no {SUFFIXES[0]} file: others may run code when they are read (convert it)"
            )
    part_files = [
        File(name, os.path.realpath(place), Identity.of(Path(place).stat())) for name, place in places.items()
    ]
    configuration_folder = Path(parts.configurations)
    folder_files = (
        find_files(model, Path(follow(str(configuration_folder))), follow).files
        if configuration_folder.is_dir()
        else ()
    )
    settings = tuple(file for file in folder_files if "/" in file.name or file.name == INDEX)
    return _open_model(path, configuration_folder.name, ModelFiles(model, (*part_files, *settings)))


@lru_cache(maxsize=16)
def _open_model(path: Path, folder: str, files: ModelFiles) -> Checkpoint:
    """Cached: the same files are checked once. `folder` is the name of the one with the configurations."""
    files, tensors = put_together(files)
    layout = recognised(tensors, files)
    parts = layout.weights(tensors)
    derived = {**layout.configurations(tensors, parts), **_tokenizer_configurations(layout)}
    by_name = {file.name: file for file in files.files}
    for name, reason in layout.files_beside(parts).items():
        if name not in by_name:
            raise files.error(f"has no {folder}/{name} beside it: {reason}")
    folder_file_names = {INDEX, *derived, *_tokenizer_files(layout)}
    weight_file_names = {info.file for weights in parts.values() for info in weights.values()}
    used_files = {
        name: file for name, file in by_name.items() if name in folder_file_names or name in weight_file_names
    }
    packaged_files: list[File] = []
    for tokenizer in layout.clip_tokenizers:
        packaged_files += _packaged_tokenizer(files, folder, tokenizer, derived, used_files)
    json_files = _json_files({INDEX: layout.index(parts), **derived})
    model_files = ModelFiles(
        files.model,
        tuple(sorted([*used_files.values(), *packaged_files])),
        {name: content for name, content in json_files.items() if name not in used_files},
        parts,
    )
    return FAMILIES[layout.pipeline](path, model_files)


def _packaged_tokenizer(
    files: ModelFiles, configuration_folder: str, folder: str, derived: Configurations, used_files: Mapping[str, File]
) -> list[File]:
    """The files of CLIP's own tokenizer, unless `configuration_folder` has another one. Raises ModelError."""
    if f"{folder}/{TOKENIZER}" in used_files or f"{folder}/{VOCABULARY_FILE}" in used_files:
        return []
    vocab_size = derived[f"{folder.replace('tokenizer', 'text_encoder')}/config.json"]["vocab_size"]
    if vocab_size != VOCABULARY:
        raise files.error(
            f"has no tokenizer in {configuration_folder}/{folder} beside it: its text encoder knows {vocab_size} "
            f"tokens, CLIP's own tokenizer has {VOCABULARY}"
        )
    places = {name: CLIP_TOKENIZER / name for name in (VOCABULARY_FILE, MERGES)}
    return [
        File(f"{folder}/{name}", os.path.realpath(place), Identity.of(place.stat())) for name, place in places.items()
    ]


def _tokenizer_configurations(layout: Layout) -> Configurations:
    """How tokenizers are configured, unless that is written beside the file."""
    configurations: dict[str, dict[str, Any]] = {
        f"{folder}/{CONFIGURATION}": {"pad_token": text} for folder, text in layout.clip_tokenizers.items()
    }
    return configurations | ({f"{layout.t5_tokenizer}/{CONFIGURATION}": {}} if layout.t5_tokenizer else {})


def _tokenizer_files(layout: Layout) -> Iterator[str]:
    """Files of tokenizers that are read if they lie beside the file."""
    for folder in layout.clip_tokenizers:
        yield from (f"{folder}/{name}" for name in CLIP_TOKENIZER_FILES)
    if layout.t5_tokenizer:
        yield from (f"{layout.t5_tokenizer}/{name}" for name in T5_TOKENIZER_FILES)


def _json_files(configurations: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: json.dumps(values, sort_keys=True).encode() for name, values in configurations.items()}
