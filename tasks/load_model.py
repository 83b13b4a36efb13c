"""Task: a model's denoiser, with what steers it, into this process' memory. Parts are loaded and let go separately."""

from __future__ import annotations

import asyncio

from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext


@task("load model {model}")
async def load_model(model: str, run: RenderContext) -> None:
    """Load the denoiser of one of a run's models with its ControlNets and T2I-Adapters, once per process."""
    await asyncio.to_thread(run.load_denoiser, model)
