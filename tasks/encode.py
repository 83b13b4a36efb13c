"""Tasks: prompts to embeddings, images to what is attended to of them, the init image to a latent; each once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby

from prefect_regional_diffusion.sampling_core.tensors.specs import Specs
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.machine.task import task
from prefect_regional_diffusion.tasks.runtime.image_prompt_files import encode_images
from prefect_regional_diffusion.tasks.runtime.model_cache import let_go
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext, Tensors
from prefect_regional_diffusion.tasks.storage.keys import TensorKey
from prefect_regional_diffusion.tasks.storage.parallel_io import read_all, write_all
from prefect_regional_diffusion.tasks.storage.store import Store


@task("encode prompts")
async def encode_prompts(runs: Sequence[RenderContext], ready: asyncio.Future[None]) -> int:
    """Encode the prompts of runs (at least one, with one store) that it does not have; returns how many that were.

    Text encoders are loaded only for that, one model after the other, and let go again unless the settings say
    otherwise.

    `ready` is set once the runs know all their prompts.
    """
    store = runs[0].store
    wanted = {run.prompt_key(prompt): (run, prompt) for run in runs for prompt in run.sampling_run.prompts}
    specs = {key: run.prompt_specs(prompt) for key, (run, prompt) in wanted.items()}

    def model_of(key: TensorKey) -> str:
        return wanted[key][1].model

    async def encoded(missing: Sequence[TensorKey]) -> dict[TensorKey, Tensors]:
        found: dict[TensorKey, Tensors] = {}
        for model, group in groupby(sorted(missing, key=model_of), key=model_of):
            of_model = [(key, *wanted[key]) for key in group]
            with ExitStack() as held:
                if not settings().keep_text_encoders:
                    held.callback(let_go, "text_encoder")
                encoder = await asyncio.to_thread(held.enter_context, of_model[0][1].text_encoder(model))
                for key, run, prompt in of_model:
                    found[key] = dict((await asyncio.to_thread(run.encode_prompt, prompt, encoder)).tensors)
        return found

    known, missing = await _found_or_made(store, specs, encoded)
    for run in runs:
        run.remember(known | missing)
    ready.set_result(None)
    await write_all(store, missing)
    return len(missing)


@task("encode image prompts")
async def encode_image_prompts(runs: Sequence[RenderContext], ready: asyncio.Future[None]) -> int:
    """Make keys and values of the images of runs (at least one, with one store) that it lacks; returns how many.

    Image encoders and adapters are loaded only for that, one after the other, and let go again.

    `ready` is set once the runs know what their rows attend to.
    """
    store = runs[0].store
    wanted = {key: source for run in runs for key, source in run.image_sources.items()}
    known = await read_all(store, {key: source.adapter.specs for key, source in wanted.items()})
    missing = await asyncio.to_thread(
        encode_images, {key: source for key, source in wanted.items() if key not in known}, runs[0].facts
    )
    for run in runs:
        run.remember(known | missing)
    ready.set_result(None)
    await write_all(store, missing)
    return len(missing)


@task("encode init image")
async def encode_start(runs: Sequence[RenderContext], ready: asyncio.Future[None]) -> int:
    """Encode the init images of runs (at least one, with one store) that it does not have; returns how many.

    `ready` is set once the runs know their start latents.
    """
    store = runs[0].store
    wanted = {run.start_key: run for run in runs}
    specs = {run.start_key: run.start_specs for run in runs}

    async def encoded(missing: Sequence[TensorKey]) -> dict[TensorKey, Tensors]:
        return {key: await asyncio.to_thread(_start, wanted[key]) for key in missing}

    known, missing = await _found_or_made(store, specs, encoded)
    for run in runs:
        run.remember({run.start_key: (known | missing)[run.start_key]})
    ready.set_result(None)
    await write_all(store, missing)
    return len(missing)


def _start(run: RenderContext) -> Tensors:
    with run.autoencoder() as autoencoder:
        return {"latent": autoencoder.encode(run.inputs["picture"])}


async def _found_or_made(
    store: Store,
    specs: Mapping[TensorKey, Specs],
    make: Callable[[Sequence[TensorKey]], Awaitable[dict[TensorKey, Tensors]]],
) -> tuple[dict[TensorKey, Tensors], dict[TensorKey, Tensors]]:
    """Objects by key that the store has, and those that it does not have, made one after the other."""
    known = await read_all(store, specs)
    return known, await make([key for key in specs if key not in known])
