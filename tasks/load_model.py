"""Task: a model's denoiser, with its ControlNets and T2I-Adapters, into this process' memory."""

from __future__ import annotations

import asyncio

from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.run_batch import RunBatch


@task("load model {model}")
async def load_model(model: str, batch: RunBatch) -> None:
    """Load the denoiser of one of a batch's models with its ControlNets and T2I-Adapters, unless this process has them.

    They stay in memory until the batch is closed.
    """
    await asyncio.to_thread(batch.load, model)
