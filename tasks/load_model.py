"""Task: a model's denoiser into this process' memory. Parts of models are loaded and let go separately."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from prefect_regional_diffusion.sampling_core.models.model_key import ModelKey
from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.model_cache import denoiser, open_model


@task("load model {model}")
async def load_model(model: str, keys: Mapping[str, ModelKey]) -> None:
    """Load the denoiser of one of a job's models, once per process; `keys` are what the job was planned with."""
    await asyncio.to_thread(lambda: denoiser(open_model(model), keys[model], keys.values()))
