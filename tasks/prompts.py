"""Tasks: prompts to embeddings and the start image to a latent, into the store, each one once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prefect import task

from tasks.at_once import at_once
from tasks.run import Run, Tensors


@task(task_run_name="encode prompts", persist_result=False)
async def encode_prompts(runs: Sequence[Run], made: asyncio.Future[None]) -> int:
    """Encode the prompts of runs (at least one, with one store) that it does not have; returns how many that were.

    `made` is set once the runs know all their prompts.
    """
    store = runs[0].store
    wanted = {run.prompt_key(words): (run, words) for run in runs for words in run.composition.prompts}
    found = dict(zip(wanted, await at_once(store.read_tensors, wanted), strict=True))
    known = {key: tensors for key, tensors in found.items() if tensors is not None}
    missing: dict[str, Tensors] = {}
    for key in [key for key in wanted if key not in known]:
        run, words = wanted[key]
        encoded = await asyncio.to_thread(run.model(words.model).encode_prompts, [words.prompt])
        missing[key] = {"embedding": encoded[words.prompt]}
    for run in runs:
        run.remember(known | missing)
    made.set_result(None)
    await at_once(lambda item: store.write_tensors(*item), missing.items())
    return len(missing)


@task(task_run_name="encode start image", persist_result=False)
async def encode_start(run: Run, made: asyncio.Future[None]) -> None:
    """Encode the start image, unless the store has its latent. `made` is set once the run knows it."""
    found = await asyncio.to_thread(run.store.read_tensors, run.start_key)
    if found is None:
        latent = await asyncio.to_thread(run.model(run.job.model).encode_picture, run.inputs["picture"])
        run.remember({run.start_key: {"latent": latent}})
        made.set_result(None)
        await asyncio.to_thread(run.store.write_tensors, run.start_key, {"latent": latent})
    else:
        run.remember({run.start_key: found})
        made.set_result(None)
