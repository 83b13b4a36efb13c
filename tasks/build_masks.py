"""Task: masks from shapes, images and colour maps to the latent lattice, into the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.preparations import preparations
from prefect_regional_diffusion.tasks.runtime.prepare import Prepared
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext, Tensors
from prefect_regional_diffusion.tasks.storage.keys import TensorKey
from prefect_regional_diffusion.tasks.storage.parallel_io import read_all, write_all


@task("build masks")
async def build_masks(job: RenderJob, store_url: str, ready: asyncio.Future[RenderContext]) -> None:
    """Check the job, hand on its run, and store its masks. Raises BadInput, ModelError or StoreError."""
    prepared = await asyncio.to_thread(preparations().take, job)
    (run,), unstored = await with_masks([prepared], store_url)
    ready.set_result(run)
    await write_all(run.store, unstored)


async def with_masks(
    prepared: Sequence[Prepared], store_url: str
) -> tuple[list[RenderContext], dict[TensorKey, Tensors]]:
    """The runs of jobs, at least one, with their masks; and those of the masks that the store does not have."""
    runs = [RenderContext(prepared_job, store_url) for prepared_job in prepared]
    masks_by_key = {run.mask_key: run.masks for run in runs}
    # What is in the store counts: another machine's masks may differ in the last bit.
    stored_masks = await read_all(runs[0].store, {run.mask_key: run.mask_specs for run in runs})
    for run in runs:
        run.remember({run.mask_key: stored_masks.get(run.mask_key) or masks_by_key[run.mask_key]})
    return runs, {key: masks for key, masks in masks_by_key.items() if key not in stored_masks}
