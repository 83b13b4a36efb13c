"""A run on its way: which devices drew it, and what it learns of their memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prefect_regional_diffusion.tasks.runtime.run_progress
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.tasks.machine.devices import (
    UNKNOWN,
    Devices,
    DeviceSteps,
    from_tensor,
    sentence,
    to_tensor,
    with_step,
)
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.run_batch import RunBatch
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress, newest
from tests.problems import GaussianData


class Small(GaussianData):
    """A network on a GPU with room for a few rows."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.refused = room, 0

    def __call__(
        self, x: Tensor, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Tensor:
        if len(x) > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("no room")
        return super().__call__(x, levels, conditioning)


def run_of(folder: Path, network: Any, monkeypatch: pytest.MonkeyPatch) -> RenderContext:
    job = {"prompt": "a blue background", "width": 64, "height": 64, "steps": 6, "batch_size": 8}
    prepared = prepare(parse_job(job))
    run = RenderContext(prepared, str(folder))
    run.remember({run.mask_key: {"none": torch.zeros(1)}})
    run.remember({run.prompt_key(words): {"prompt_embeds": torch.zeros(1, 1, 1)} for words in run.sampling_run.prompts})
    monkeypatch.setattr(RenderContext, "denoiser", lambda _self, _name: nullcontext(network))
    return run


def stored(progress: RunProgress) -> None:
    progress.run.store.write_tensors(progress.state_key, progress.to_tensors())


def drawn_up_to(progress: RunProgress, last: int) -> RunProgress:
    batch = RunBatch([progress])
    batch.advance(last - progress.done)
    return batch.members[0]


def test_a_batch_that_was_too_large_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the next chunk either: each try costs a second on a GPU that is full."""
    network = Small(room=2)
    run = run_of(tmp_path, network, monkeypatch)
    batch = RunBatch([RunProgress(run, run.sampling_run.initial_state())])
    batch.advance(1)
    assert network.refused == 3, "16, 8 and 4 rows were too many"
    for _ in range(2, 7):
        batch.advance(1)
    assert batch.done == 6
    assert network.refused == 3


def test_a_run_knows_which_devices_drew_which_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, GaussianData(), monkeypatch)
    begun = RunProgress(run, run.sampling_run.initial_state())
    for device, last in (("cpu AVX2", 2), ("cpu AVX512", 5)):
        monkeypatch.setattr(
            prefect_regional_diffusion.tasks.runtime.run_progress, "device_name", lambda device=device: device
        )
        stored(drawn_up_to(begun, last))
        begun = asyncio.run(newest(run))
    assert sentence(begun.devices) == "steps 1 to 2 on cpu AVX2; steps 3 to 5 on cpu AVX512"
    monkeypatch.undo()
    monkeypatch.setattr(RenderContext, "denoiser", lambda _self, _name: nullcontext(GaussianData()))
    assert drawn_up_to(begun, 6).devices[-1].device.startswith("cpu ")


def test_devices_are_written_as_bytes_and_read_back() -> None:
    devices: Devices = ()
    for step, device in enumerate(["a", "a", "b", "円"], start=1):
        devices = with_step(devices, step, device)
    assert [(one.first, one.last, one.device) for one in devices] == [(1, 2, "a"), (3, 3, "b"), (4, 4, "円")]
    assert from_tensor(to_tensor(devices), 4) == devices


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3),
        torch.tensor(7),
        torch.tensor([255, 0], dtype=torch.uint8),
        to_tensor((DeviceSteps(first=1, last=3, device="of another state"),)),
        to_tensor((DeviceSteps(first=1, last=4, device="x"),))[:-1],
    ],
)
def test_what_is_no_list_of_devices_is_an_unknown_one(tensor: Tensor) -> None:
    """A state that an older program wrote, or somebody else, is still a state."""
    assert from_tensor(tensor, 4) == (DeviceSteps(first=1, last=4, device=UNKNOWN),)
