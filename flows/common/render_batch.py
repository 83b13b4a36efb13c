"""What the flows `render` and `shard` have in common: prepared runs, one or many, to finished latents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import closing
from functools import partial, reduce
from typing import NamedTuple

from prefect_regional_diffusion.flows.common.chunking import sample_in_chunks
from prefect_regional_diffusion.flows.common.pending_writes import PendingWrites
from prefect_regional_diffusion.flows.common.spent_time import Clock
from prefect_regional_diffusion.flows.common.time_limit import TimeLimit
from prefect_regional_diffusion.sampling_core.engine.batching import Count
from prefect_regional_diffusion.tasks.encode import encode_image_prompts, encode_prompts, encode_start
from prefect_regional_diffusion.tasks.load_model import load_model
from prefect_regional_diffusion.tasks.machine.device_lock import take_device
from prefect_regional_diffusion.tasks.machine.metrics import tell
from prefect_regional_diffusion.tasks.machine.step_listener import report_step
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.retention import RunRecord, begin
from prefect_regional_diffusion.tasks.runtime.run_batch import RunBatch
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress, newest
from prefect_regional_diffusion.tasks.storage.parallel_io import map_concurrently
from prefect_regional_diffusion.tasks.ui.artifacts import RunArtifacts


class SampledBatch(NamedTuple):
    """Finished runs, in the order that they were given in, with what sampling them cost here."""

    members: tuple[RunProgress, ...]
    run_records: asyncio.Task[list[RunRecord]]
    """The store's records of the runs, once they are written."""
    restored_steps: int
    computed_steps: int
    cost: Count
    artifacts: RunArtifacts
    """Of the UI, which is still to be told of the end."""


async def sample_batch(
    runs: Mapping[str, RenderContext],
    checkpoint_steps: int | None,
    writes: PendingWrites,
    clock: Clock,
    limit: TimeLimit,
) -> SampledBatch:
    """Runs (at least one) by name, all of the same models and with one store, sampled to their last step.

    Their masks are known, and may still be being written. Each goes on from its newest state in the store.
    Raises TimeLimitError where the time is over.
    """
    contexts = list(runs.values())
    await take_device()
    # First: image encoders and adapters are let go before anything else is loaded, and refused if they do not load.
    with_images = [run for run in contexts if run.images]
    if with_images:
        await writes.first_result(partial(encode_image_prompts, with_images))
    with_init_image = [run for run in contexts if run.job.init_image is not None]
    if with_init_image:
        await writes.first_result(partial(encode_start, with_init_image))
    _, restored = await asyncio.gather(
        writes.first_result(partial(encode_prompts, contexts)), asyncio.gather(*map(newest, contexts))
    )
    clock.lap("encode prompts")
    inputs = writes.all_pending()
    run_records = writes.start(map_concurrently(lambda item: begin(item[1], item[0]), runs.items()))
    with closing(RunBatch(restored)) as batch:
        # Only now: text encoders may be let go before, and runs that only have to be decoded need no denoiser.
        if any(member.left for member in restored):
            for model in contexts[0].models:
                await load_model(model, batch)
        clock.lap("load model")
        restored_steps, _ = batch.steps_done()
        tell("steps", restored_steps, "restored")
        report_step(*batch.steps_done())
        artifacts = RunArtifacts(batch)

        def after_chunk() -> None:
            artifacts.renew()
            limit.check(*batch.steps_done())

        chunks = await sample_in_chunks(batch, checkpoint_steps, inputs, writes, after_chunk)
    clock.lap("sample")
    cost = reduce(Count.plus, (chunk.cost for chunk in chunks), Count())
    computed_steps = sum(chunk.steps for chunk in chunks)
    return SampledBatch(batch.members, run_records, restored_steps, computed_steps, cost, artifacts)
