"""Tasks: prompts to embeddings, images to keys and values, the init image to a latent; each once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby

from prefect_regional_diffusion.sampling_core.tensors.specs import Specs
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.encoded_prompts import encoded_prompts
from prefect_regional_diffusion.tasks.runtime.image_prompt_files import encode_images
from prefect_regional_diffusion.tasks.runtime.model_cache import let_go
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext, Tensors
from prefect_regional_diffusion.tasks.storage.keys import TensorKey
from prefect_regional_diffusion.tasks.storage.parallel_io import read_all, write_all
from prefect_regional_diffusion.tasks.storage.store import Store


@task("encode prompts")
async def encode_prompts(runs: Sequence[RenderContext], ready: asyncio.Future[None]) -> int:
    """See to it that the store has the prompts of runs (at least one, with one store); returns how many it lacked.

    Text encoders are loaded only for prompts that this process has not encoded before, one model after the other, and
    evicted again unless the settings say otherwise.

    `ready` is set once the runs know all their prompts.
    """
    store = runs[0].store
    prompts_by_key = {run.prompt_key(prompt): (run, prompt) for run in runs for prompt in run.sampling_run.prompts}
    specs = {key: run.prompt_specs(prompt) for key, (run, prompt) in prompts_by_key.items()}

    def model_of(key: TensorKey) -> str:
        return prompts_by_key[key][1].model

    async def encode_missing(missing: Sequence[TensorKey]) -> dict[TensorKey, Tensors]:
        found = ((key, encoded_prompts().find(key)) for key in missing)
        tensors = {key: encoded for key, encoded in found if encoded is not None}
        unknown = [key for key in missing if key not in tensors]
        for model, group in groupby(sorted(unknown, key=model_of), key=model_of):
            group_prompts = [(key, *prompts_by_key[key]) for key in group]
            with ExitStack() as stack:
                if not settings().keep_text_encoders:
                    stack.callback(let_go, "text_encoder")
                encoder = await asyncio.to_thread(stack.enter_context, group_prompts[0][1].text_encoder(model))
                for key, run, prompt in group_prompts:
                    conditioning = await asyncio.to_thread(run.encode_prompt, prompt, encoder)
                    tensors[key] = {name: tensor.detach().cpu() for name, tensor in conditioning.tensors.items()}
                    encoded_prompts().put(key, tensors[key])
        return tensors

    stored_tensors, missing = await _read_or_make(store, specs, encode_missing)
    for run in runs:
        run.remember(stored_tensors | missing)
    ready.set_result(None)
    await write_all(store, missing)
    return len(missing)


@task("encode image prompts")
async def encode_image_prompts(runs: Sequence[RenderContext], ready: asyncio.Future[None]) -> int:
    """Compute keys and values of images of runs (at least one, with one store) that the store lacks; returns how many.

    Image encoders and adapters are loaded only for that, one after the other, and not kept.

    `ready` is set once the runs know what their rows attend to.
    """
    store = runs[0].store
    sources = {key: source for run in runs for key, source in run.image_sources.items()}
    stored_tensors = await read_all(store, {key: source.adapter.specs for key, source in sources.items()})
    missing = await asyncio.to_thread(
        encode_images, {key: source for key, source in sources.items() if key not in stored_tensors}, runs[0].facts
    )
    for run in runs:
        run.remember(stored_tensors | missing)
    ready.set_result(None)
    await write_all(store, missing)
    return len(missing)


@task("encode init image")
async def encode_start(runs: Sequence[RenderContext], ready: asyncio.Future[None]) -> int:
    """Encode the init images of runs (at least one, with one store) that the store lacks; returns how many.

    `ready` is set once the runs know their start latents.
    """
    store = runs[0].store
    runs_by_key = {run.start_key: run for run in runs}
    specs = {run.start_key: run.start_specs for run in runs}

    async def encode_missing(missing: Sequence[TensorKey]) -> dict[TensorKey, Tensors]:
        return {key: await asyncio.to_thread(_init_latent, runs_by_key[key]) for key in missing}

    stored_tensors, missing = await _read_or_make(store, specs, encode_missing)
    for run in runs:
        run.remember({run.start_key: (stored_tensors | missing)[run.start_key]})
    ready.set_result(None)
    await write_all(store, missing)
    return len(missing)


def _init_latent(run: RenderContext) -> Tensors:
    with run.autoencoder() as autoencoder:
        return {"latent": autoencoder.encode(run.inputs["picture"])}


async def _read_or_make(
    store: Store,
    specs: Mapping[TensorKey, Specs],
    make: Callable[[Sequence[TensorKey]], Awaitable[dict[TensorKey, Tensors]]],
) -> tuple[dict[TensorKey, Tensors], dict[TensorKey, Tensors]]:
    """Objects by key: those that the store has, and those that it lacks, made one after the other."""
    stored_tensors = await read_all(store, specs)
    return stored_tensors, await make([key for key in specs if key not in stored_tensors])
