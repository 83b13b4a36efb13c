"""Task: prompts to embeddings, into the store, each one once."""

from __future__ import annotations

from prefect import task

from tasks.loading import loaded
from tasks.run import Run


@task(task_run_name="encode prompts", persist_result=False)
def encode_prompts(run: Run) -> int:
    """Encode the prompts that the store does not have; returns how many that were."""
    missing = [p for p in run.composition.prompts if run.store.read_tensors(run.prompt_key(p)) is None]
    if missing:
        for prompt, embedding in loaded(run.folder, run.model_fingerprint).encode_prompts(missing).items():
            run.store.write_tensors(run.prompt_key(prompt), {"embedding": embedding})
    return len(missing)
