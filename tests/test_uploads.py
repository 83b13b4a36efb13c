"""Chunks: the next one is sampled while the last is written, and none is done before it is durable."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import prefect_regional_diffusion.flows.common.chunking
from prefect_regional_diffusion.flows.common.chunking import STATES_PER_CHUNK, chosen_size, sample_in_chunks
from prefect_regional_diffusion.flows.common.pending_writes import PendingWrites
from prefect_regional_diffusion.sampling_core.engine.batching import Count
from prefect_regional_diffusion.sampling_core.errors import StoreError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.tasks.build_masks import build_masks
from prefect_regional_diffusion.tasks.encode import encode_prompts
from prefect_regional_diffusion.tasks.machine.settings import Settings
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.run_batch import Chunk, RunBatch
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress, newest
from prefect_regional_diffusion.tasks.sample import base_only_steps, regional_steps
from prefect_regional_diffusion.tasks.storage.keys import TensorKey
from prefect_regional_diffusion.tasks.storage.retry import retry_transient
from prefect_regional_diffusion.tasks.storage.store import Store

JOB = parse_job(
    {
        "prompt": "a green background",
        "width": 64,
        "height": 64,
        "steps": 6,
        "sampler": "euler",
        "regions": [{"prompt": "a red background", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}],
    }
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RenderContext:
    """A run that is ready to be sampled; its tasks are called as plain functions."""
    monkeypatch.setattr(prefect_regional_diffusion.flows.common.chunking, "base_only_steps", base_only_steps.fn)
    monkeypatch.setattr(prefect_regional_diffusion.flows.common.chunking, "regional_steps", regional_steps.fn)

    async def flow() -> RenderContext:
        async with PendingWrites() as writes:
            run = await writes.first_result(partial(build_masks.fn, JOB, str(tmp_path)))
            await writes.first_result(partial(encode_prompts.fn, [run]))
            return run

    return asyncio.run(flow())


def found(run: RenderContext) -> RunProgress:
    """The run with what the store has of it."""
    return asyncio.run(newest(run))


def sampled(progress: RunProgress, checkpoint_steps: int) -> list[Chunk]:
    """Sample all and wait until all is written, as the flow does."""

    async def flow() -> list[Chunk]:
        async with PendingWrites() as writes:
            batch = RunBatch([progress])
            return await sample_in_chunks(batch, checkpoint_steps, writes.all_pending(), writes, lambda: None)

    return asyncio.run(flow())


def settings_with(monkeypatch: pytest.MonkeyPatch, *modules: Any, **changes: Any) -> None:
    for module in modules:
        monkeypatch.setattr(module, "settings", lambda: Settings(**changes))


def test_the_next_chunk_is_sampled_while_the_last_is_written(
    run: RenderContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes wait until three chunks are sampled; never do more than two wait while another chunk is sampled."""
    settings_with(monkeypatch, prefect_regional_diffusion.flows.common.chunking, max_pending_writes=2)
    written: list[int] = []
    third, progress = threading.Event(), found(run)
    writes, advances = Store.write_tensors, RunBatch.advance

    def slow_write(store: Store, key: TensorKey, tensors: Any) -> int:
        if int(key[-5:]) <= 2:
            assert third.wait(60), "chunks wait for each other's writes"
        size = writes(store, key, tensors)
        written.append(int(key[-5:]))
        return size

    def advance(self: RunBatch, steps: int) -> Any:
        assert self.done - len(written) <= 2, "more states wait to be written than allowed"
        chunk = advances(self, steps)
        if self.done == 3:
            third.set()
        return chunk

    monkeypatch.setattr(Store, "write_tensors", slow_write)
    monkeypatch.setattr(RunBatch, "advance", advance)
    chunks = sampled(progress, 1)
    assert len(chunks) == 6
    assert sorted(written) == [1, 2, 3, 4, 5, 6], "not all durable at the end"


def test_states_are_saved_as_often_as_their_number_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs at once write no more states a second than STATES_PER_CHUNK each `checkpoint_seconds`."""
    settings_with(monkeypatch, prefect_regional_diffusion.flows.common.chunking, checkpoint_seconds=2.0)
    last = Chunk(steps=10, cost=Count(), seconds=4.0)
    assert chosen_size([], 32) == 1, "nothing is known of the speed yet"
    assert [chosen_size([last], states) for states in (0, 1, STATES_PER_CHUNK)] == [5, 5, 5]
    assert chosen_size([last], 4 * STATES_PER_CHUNK) == 20
    assert chosen_size([last._replace(seconds=1000.0)], STATES_PER_CHUNK) == 1


def test_a_write_that_fails_ends_the_run_and_keeps_the_others(
    run: RenderContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Store.write_tensors

    def failing(store: Store, key: TensorKey, tensors: Any) -> int:
        if key.endswith("00003"):
            raise StoreError("store", store.url, "does not answer")
        return writes(store, key, tensors)

    monkeypatch.setattr(Store, "write_tensors", failing)
    with pytest.raises(StoreError):
        sampled(found(run), 1)
    monkeypatch.setattr(Store, "write_tensors", writes)
    assert found(run).done >= 2


def test_a_chunk_ends_where_another_job_can_go_on(tmp_path: Path, run: RenderContext) -> None:
    """Whatever the size of chunks: where a region enters and leaves there is a state, which `branch_points` keeps."""
    windows = JOB.regions[0].model_copy(update={"start_at_step": 2, "end_at_step": 5})
    told = JOB.model_copy(update={"regions": (windows,)})

    async def flow() -> RenderContext:
        async with PendingWrites() as writes:
            made = await writes.first_result(partial(build_masks.fn, told, str(tmp_path)))
            await writes.first_result(partial(encode_prompts.fn, [made]))
            return made

    own = asyncio.run(flow())
    sampled(found(own), 100)
    stored = {key for step in range(1, 7) for key in [own.state_key(step)] if own.store.read(key, 10**6)}
    assert stored == {own.state_key(step) for step in (2, 5, 6)}


def test_sampling_that_fails_is_said(run: RenderContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: RunBatch, steps: int) -> Any:
        raise ArithmeticError(f"no step {self.done + 1}")

    monkeypatch.setattr(RunBatch, "advance", broken)
    with pytest.raises(ArithmeticError, match="no step 1"):
        sampled(found(run), 2)


@pytest.mark.parametrize(
    "planted",
    [
        {"x": torch.zeros(1, 4, 8, 8)},
        {"step": torch.tensor(3), "x": torch.zeros(1, 4, 8, 8)},
        {"step": torch.tensor(10**12), "x": torch.zeros(1, 4, 8, 8)},
        {"step": torch.tensor([3, 3]), "x": torch.zeros(1, 4, 8, 8)},
        {"step": torch.tensor(2), "x": torch.zeros(1, 4, 16, 16)},
    ],
)
def test_what_is_no_state_of_the_run_counts_as_absent(run: RenderContext, planted: dict[str, torch.Tensor]) -> None:
    """Whole files, that say something else than their names do."""
    run.store.write_tensors(run.state_key(2), planted)
    assert found(run).done == 0


@pytest.mark.parametrize("kind", [OSError, TimeoutError, ConnectionError, RuntimeError])
def test_what_may_pass_is_tried_again(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect_regional_diffusion.tasks.storage.retry as patience

    settings_with(monkeypatch, patience, store_retry_seconds=5)
    tries: list[int] = []

    def third_time() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise kind("down")
        return "found"

    assert retry_transient("s3://b", third_time, "read") == "found"


@pytest.mark.parametrize(("kind", "patience"), [(PermissionError, 600), (FileNotFoundError, 600), (OSError, 0)])
def test_what_will_not_pass_is_said_at_once(
    kind: type[Exception], patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prefect_regional_diffusion.tasks.storage.retry as module

    settings_with(monkeypatch, module, store_retry_seconds=patience)
    tries: list[int] = []

    def fails() -> None:
        tries.append(1)
        raise kind("no such bucket")

    with pytest.raises(StoreError, match="no such bucket"):
        retry_transient("s3://has-never-answered", fails, "read")
    assert len(tries) == 1
