"""A model in one file, opened as the folder that it could be: only its header is read.

Shapes tell widths and depths; what they do not tell (heads, activations, how latents are scaled) is as in the published
models, unless configurations lie in a folder beside the file: `NAME/` for `NAME.safetensors`, laid out as a model's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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
from prefect_regional_diffusion.sampling_core.models.single_file.layouts import Configurations, Layout
from prefect_regional_diffusion.sampling_core.models.single_file.recognition import recognised
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import (
    CLIP_TOKENIZER_FILES,
    CONFIGURATION,
    MERGES,
    TOKENIZER,
)
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import (
    VOCABULARY as VOCABULARY_FILE,
)
from prefect_regional_diffusion.sampling_core.models.weights import read_header

SUFFIX = ".safetensors"
WEIGHTS = f"model{SUFFIX}"
"""What the file is known as: its own name changes no picture."""
_SCHEDULER = "scheduler/scheduler_config.json"


def open_file(model: str, path: Path, follow: Follow = os.path.realpath) -> Checkpoint:
    """Check the header of a file, and find what lies in the folder beside it.

    `follow` is for links there. Raises ModelError for what is no whole model of a known family, and OSError.
    """
    if path.suffix.lower() != SUFFIX:
        raise ModelError("model", model, f"is no {SUFFIX} file: others may run code when they are read (convert it)")
    own = File(WEIGHTS, os.path.realpath(path), Identity.of(path.stat()))
    beside = path.with_suffix("")
    found = find_files(model, Path(follow(str(beside))), follow).files if beside.is_dir() else ()
    return _opened(path, ModelFiles(model, (own, *(file for file in found if file.name != WEIGHTS))))


@lru_cache(maxsize=16)
def _opened(path: Path, files: ModelFiles) -> Checkpoint:
    """The same files need not be checked twice."""
    tensors = {stored.name: stored for stored in read_header(files, WEIGHTS)[0]}
    layout = recognised(tensors, files)
    weights = layout.weights(tensors)
    derived = layout.configurations(tensors, weights)
    beside = {file.name: file for file in files.files}
    if not layout.told_prediction and _SCHEDULER not in beside:
        raise files.error(
            f"has no {path.stem}/{_SCHEDULER} beside it: it says whether the prediction_type of this {layout.known_as} "
            "model is epsilon or v_prediction, which the weights do not"
        )
    wanted = {INDEX, *derived, *(f"{folder}/{name}" for folder in layout.tokenizers for name in CLIP_TOKENIZER_FILES)}
    read = {name: file for name, file in beside.items() if name in wanted or name == WEIGHTS}
    shipped: list[File] = []
    for folder in layout.tokenizers:
        shipped += _tokenizer(files, path, folder, derived, read)
    written = _json({INDEX: layout.index(), **derived, **_paddings(layout)})
    folder = ModelFiles(
        files.model,
        tuple(sorted([*read.values(), *shipped])),
        {name: content for name, content in written.items() if name not in read},
        weights,
    )
    return FAMILIES[layout.pipeline](path, folder)


def _tokenizer(
    files: ModelFiles, path: Path, folder: str, derived: Configurations, read: Mapping[str, File]
) -> list[File]:
    """The files of CLIP's own tokenizer, unless another one lies beside the file. Raises ModelError."""
    if f"{folder}/{TOKENIZER}" in read or f"{folder}/{VOCABULARY_FILE}" in read:
        return []
    known = derived[f"{folder.replace('tokenizer', 'text_encoder')}/config.json"]["vocab_size"]
    if known != VOCABULARY:
        raise files.error(
            f"has no tokenizer in {path.stem}/{folder} beside it: its text encoder knows {known} tokens, CLIP's own "
            f"tokenizer has {VOCABULARY}"
        )
    places = {name: CLIP_TOKENIZER / name for name in (VOCABULARY_FILE, MERGES)}
    return [
        File(f"{folder}/{name}", os.path.realpath(place), Identity.of(place.stat())) for name, place in places.items()
    ]


def _paddings(layout: Layout) -> Configurations:
    return {f"{folder}/{CONFIGURATION}": {"pad_token": text} for folder, text in layout.tokenizers.items()}


def _json(configurations: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: json.dumps(values, sort_keys=True).encode() for name, values in configurations.items()}
