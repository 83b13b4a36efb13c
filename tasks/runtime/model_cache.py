"""Models in this process: each part of one (text encoders, denoiser, autoencoder) is loaded and let go separately."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch

from prefect_regional_diffusion.sampling_core.models.control_file import ControlFile, ControlNetwork
from prefect_regional_diffusion.sampling_core.models.family import Autoencoder, Checkpoint, Denoiser, Part, TextEncoder
from prefect_regional_diffusion.sampling_core.models.folder import open_checkpoint
from prefect_regional_diffusion.sampling_core.models.model_key import ModelKey
from prefect_regional_diffusion.tasks.inputs.model_names import find_model
from prefect_regional_diffusion.tasks.inputs.path_policy import model_place
from prefect_regional_diffusion.tasks.machine.settings import settings

_loaded: dict[tuple[str, Part], Any] = {}
"""By the fingerprint of the weights."""

_one_at_a_time = threading.Lock()
"""A preview and the finished picture may need the same autoencoder at once."""


def text_encoder(checkpoint: Checkpoint, key: ModelKey, needed: Iterable[ModelKey]) -> TextEncoder:
    """The text encoders of a model, loaded on first use on the device that the settings name.

    All parts of models that are not `needed` with it are let go: many cards have no room for two models of Stable
    Diffusion's size. Raises ModelError, also for files that are not those of `key` any more.
    """
    return _part(checkpoint, key, needed, "text_encoder", checkpoint.load_text_encoder)


def denoiser(checkpoint: Checkpoint, key: ModelKey, needed: Iterable[ModelKey]) -> Denoiser:
    """The denoiser of a model, in the same way."""

    def load(device: str, dtype: torch.dtype) -> Denoiser:
        # What cannot be decoded need not be sampled.
        checkpoint.check_weights("autoencoder")
        return checkpoint.load_denoiser(device, dtype)

    return _part(checkpoint, key, needed, "denoiser", load)


def control(file: ControlFile, needed: Iterable[ModelKey]) -> ControlNetwork:
    """A ControlNet or T2I-Adapter, in the same way: it is let go with the denoisers."""
    return _part(file, ModelKey(file.fingerprint()), needed, "denoiser", file.load)


def autoencoder(checkpoint: Checkpoint, key: ModelKey, needed: Iterable[ModelKey]) -> Autoencoder:
    """The autoencoder of a model, in the same way."""
    return _part(checkpoint, key, needed, "autoencoder", checkpoint.load_autoencoder)


def let_go(part: Part) -> None:
    """Let this part of all models go; who still uses one keeps it in memory."""
    with _one_at_a_time:
        for name in [name for name in _loaded if name[1] == part]:
            del _loaded[name]


def _part(
    checkpoint: Checkpoint | ControlFile,
    key: ModelKey,
    needed: Iterable[ModelKey],
    part: Part,
    load: Callable[[str, torch.dtype], Any],
) -> Any:
    name = (key.weights, part)
    with _one_at_a_time:
        if name not in _loaded:
            if checkpoint.fingerprint() != key.weights:
                raise checkpoint.files.error(
                    "is not the model any more that the job was planned with: its files changed"
                )
            weights = {key.weights, *(other.weights for other in needed)}
            for other in [other for other in _loaded if other[0] not in weights]:
                del _loaded[other]
            _loaded[name] = load(settings().torch_device(), settings().torch_dtype())
        return _loaded[name]


def open_model(name: str, field: str = "model") -> Checkpoint:
    """A model that a job names; it and the files that its links lead to are under the roots.

    Raises BadInput or ModelError.
    """
    if name == "embedded":
        return open_checkpoint(name)
    found = find_model(field, name)
    return open_checkpoint(
        found.place, lambda link: model_place(field, link, "whose links lead there too"), found.variant
    )
