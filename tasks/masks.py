"""Task: masks from shapes, images and colour maps to the latent lattice, into the store."""

from __future__ import annotations

import torch
from prefect import task

from sampling_core.job import RenderJob
from tasks.preparing import prepare
from tasks.run import Run, mask_key, numerics
from tasks.store import Store


@task(task_run_name="build masks", persist_result=False)
def build_masks(job: RenderJob, store_url: str) -> Run:
    """Check the job and store its masks; returns its run. Raises BadInput, ModelError or StoreError."""
    prepared = prepare(job)
    store = Store(store_url)
    key = mask_key(prepared.mask_hash)
    # A job without regions has none, and safetensors wants at least one tensor.
    if store.read_tensors(key) is None:
        store.write_tensors(key, prepared.inputs or {"none": torch.zeros(1)})
    return Run(
        job=job,
        job_hash=prepared.job_hash,
        mask_hash=prepared.mask_hash,
        fingerprints=prepared.fingerprints,
        numerics=numerics(),
        store_url=store_url,
    )
