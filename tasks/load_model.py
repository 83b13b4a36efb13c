"""Task: the model into this process' memory, where it stays for the next task and the next run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.folder import ModelFolder
from prefect_regional_diffusion.sampling_core.models.loading import Model, load
from prefect_regional_diffusion.tasks.inputs.path_policy import open_model
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.machine.task import task

_loaded: dict[str, Model] = {}


@task("load model {model}")
async def load_model(model: str, fingerprints: dict[str, str]) -> None:
    """Load one of a job's models, once per process; `fingerprints` is what the job was planned with, by model."""
    await asyncio.to_thread(lambda: loaded(open_model(model), fingerprints[model], fingerprints.values()))


def loaded(folder: ModelFolder, fingerprint: str, needed: Iterable[str]) -> Model:
    """The model with these weights, loaded on first use on the device that the settings name.

    What is not `needed` with it is let go: many cards have no room for two models of Stable Diffusion's size.
    """
    if fingerprint not in _loaded:
        if folder.fingerprint() != fingerprint:
            raise ModelError("model", folder.files.model, "the model that the job was planned with (its files changed)")
        for other in set(_loaded) - set(needed):
            del _loaded[other]
        _loaded[fingerprint] = load(folder, settings().torch_device(), settings().torch_dtype())
    return _loaded[fingerprint]
