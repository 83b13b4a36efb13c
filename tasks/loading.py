"""Task: the model into this process' memory, where it stays for the next task and the next run."""

from __future__ import annotations

from functools import lru_cache

import torch
from prefect import task

from sampling_core.models.folder import ModelFolder, open_folder
from sampling_core.models.loading import Model, load
from tasks.settings import settings


@task(task_run_name="load model {model}")
def load_model(model: str) -> str:
    """Load a model folder (once per process) and return the fingerprint of its weights."""
    folder = open_folder(model)
    loaded(folder)
    return folder.fingerprint()


def loaded(folder: ModelFolder) -> Model:
    """The model of a folder, loaded on first use on the device that the settings name. It is never a task result."""
    return _loaded(folder, settings().torch_device(), settings().torch_dtype())


# One only: two models of Stable Diffusion's size would not fit on the cards that many people have.
@lru_cache(maxsize=1)
def _loaded(folder: ModelFolder, device: str, dtype: torch.dtype) -> Model:
    return load(folder, device, dtype)
