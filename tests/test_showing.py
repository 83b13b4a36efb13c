"""What is shown of runs while they are sampled: their pictures as they will be, few enough to cost little."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import torch
from PIL import Image

import prefect_regional_diffusion.tasks.ui.artifacts
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.run_batch import RunBatch
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress
from prefect_regional_diffusion.tasks.ui.artifacts import PREVIEW_CELLS, ProgressArtifact, preview


def at_its_start(folder: Path, **fields: Any) -> RunProgress:
    job = {"prompt": "a blue background", "width": 64, "height": 64, "steps": 2}
    prepared = prepare(parse_job(job | fields))
    run = RenderContext(prepared, str(folder))
    run.remember({run.mask_key: prepared.inputs.tensors or {"none": torch.zeros(1)}})
    return RunProgress(run, run.sampling_run.initial_state())


def decoded(progress: RunProgress) -> Image.Image:
    with progress.run.autoencoder() as autoencoder:
        return Image.fromarray(autoencoder.decode(progress.predicted_clean[:1])[0].numpy())


def test_of_one_run_it_is_its_first_picture(tmp_path: Path) -> None:
    alone = at_its_start(tmp_path, batch_size=2, height=96)
    assert preview([alone]).tobytes() == decoded(alone).tobytes()


def test_of_several_it_is_a_sheet_of_them(tmp_path: Path) -> None:
    runs = [at_its_start(tmp_path, seed=seed) for seed in range(5)]
    made = preview(runs)
    assert made.size == (3 * 64 + 4 * 4, 2 * 64 + 3 * 4)
    for i, run in enumerate(runs):
        left, top = 4 + i % 3 * 68, 4 + i // 3 * 68
        assert made.crop((left, top, left + 64, top + 64)).tobytes() == decoded(run).tobytes()


@pytest.mark.parametrize(("edge", "size"), [(128, 4 * 128 + 5 * 4), (512, 512), (576, 512)])
def test_it_never_has_more_cells_than_that_of_one_large_picture(edge: int, size: int, tmp_path: Path) -> None:
    """Of 20 runs, so many as fit; a picture that is larger by itself is made smaller."""
    runs = [at_its_start(tmp_path, seed=seed, width=edge, height=edge) for seed in range(20)]
    assert 8 * PREVIEW_CELLS == 512
    assert preview(runs).size == (size, size)


def test_runs_in_company_are_expected_to_end_as_they_are_alone(tmp_path: Path) -> None:
    """The guess follows the last step, so the state before it must be known there too."""

    def begun(seed: int) -> RunProgress:
        progress = at_its_start(tmp_path, steps=6, seed=seed)
        run = progress.run
        for words in run.sampling_run.prompts:
            with run.text_encoder(words.model) as encoder:
                told = encoder.encode(words.prompt)
            run.remember({run.prompt_key(words): dict(told.tensors)})
        return progress

    alone, several = RunBatch([begun(1)]), RunBatch([begun(1), begun(2)])
    alone.advance(4)
    several.advance(4)
    one = several.members[0]
    torch.testing.assert_close(one.predicted_clean, alone.members[0].predicted_clean, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one.predicted_clean, one.state.x, atol=1e-2)


def test_a_bar_is_made_once_and_moved_when_it_has_something_new_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, ...]] = []
    made = uuid4()

    async def create(progress: float, key: str, description: str) -> UUID:
        told.append((key, progress, description))
        return made

    async def update(artifact: UUID, progress: float, description: str) -> None:
        told.append((artifact, progress, description))

    monkeypatch.setattr(prefect_regional_diffusion.tasks.ui.artifacts, "create_progress", create)
    monkeypatch.setattr(prefect_regional_diffusion.tasks.ui.artifacts, "update_progress", update)

    async def flow() -> None:
        bar = ProgressArtifact()
        for done in (0, 0, 1, 1, 4):
            await bar.show(done, 4, f"{done} of 4")

    asyncio.run(flow())
    assert told == [("progress", 0, "0 of 4"), (made, 25, "1 of 4"), (made, 100, "4 of 4")]
