"""Tasks: prompts to embeddings and the start image to a latent, into the store, each one once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from prefect import task

from tasks.run import Run


@task(task_run_name="encode prompts", persist_result=False)
def encode_prompts(run: Run) -> int:
    """Encode the prompts that the store does not have; returns how many that were."""
    prompts = run.composition.prompts
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run.store.read_tensors, map(run.prompt_key, prompts)))
    missing = [words for words, tensors in zip(prompts, found, strict=True) if tensors is None]
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
