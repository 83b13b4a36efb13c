"""The loaded model of this process. It stays for the next task and the next run; it is never a task result."""

from __future__ import annotations

from functools import lru_cache

import torch

from sampling_core.models.folder import ModelFolder
from sampling_core.models.loading import Model, load
from tasks.settings import settings


def loaded(folder: ModelFolder) -> Model:
    """The model of a folder, loaded on first use on the device that the settings name."""
    return _loaded(folder, settings().torch_device(), settings().torch_dtype())


# One only: two models of Stable Diffusion's size would not fit on the cards that many people have.
@lru_cache(maxsize=1)
def _loaded(folder: ModelFolder, device: str, dtype: torch.dtype) -> Model:
    return load(folder, device, dtype)
