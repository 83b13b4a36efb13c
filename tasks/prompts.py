"""Tasks: prompts to embeddings and the start image to a latent, into the store, each one once."""

from __future__ import annotations

from prefect import task

from tasks.run import Run


@task(task_run_name="encode prompts", persist_result=False)
def encode_prompts(run: Run) -> int:
    """Encode the prompts that the store does not have; returns how many that were."""
    missing = [words for words in run.composition.prompts if run.store.read_tensors(run.prompt_key(words)) is None]
    for words in missing:
        encoded = run.model(words.model).encode_prompts([words.prompt])
        run.store.write_tensors(run.prompt_key(words), {"embedding": encoded[words.prompt]})
    return len(missing)


@task(task_run_name="encode start image", persist_result=False)
def encode_start(run: Run) -> None:
    """Encode the start image, unless the store has its latent."""
    if run.store.read_tensors(run.start_key) is None:
        latent = run.model(run.job.model).encode_picture(run.inputs["picture"])
        run.store.write_tensors(run.start_key, {"latent": latent})
