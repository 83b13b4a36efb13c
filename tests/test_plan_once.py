"""What a run needs is looked at and planned once: files, model folders and masks by canvas, runs by job."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prefect_regional_diffusion.flows.cli import main as cli
from prefect_regional_diffusion.sampling_core.engine.cache_keys import segment_keys
from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.models.family import Canvas
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.planning.compile import compose
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from prefect_regional_diffusion.tasks.runtime import job_inputs, preparations
from prefect_regional_diffusion.tasks.runtime import prepare as preparing
from prefect_regional_diffusion.tasks.runtime.preparations import Preparations, prepared_once

JOB: dict[str, Any] = {
    **{"prompt": "a blue background", "width": 64, "height": 64, "steps": 2, "sampler": "euler"},
    "regions": [{"prompt": "a red circle", "mask": {"image": "mask.png"}}],
}
COUNTED: dict[str, tuple[Any, str]] = {
    "jobs prepared": (preparations, "prepare"),
    "inputs read": (preparations, "read_inputs"),
    "model folders opened": (job_inputs, "open_model"),
    "masks drawn": (job_inputs, "region_masks"),
    "runs composed": (preparing, "compose"),
}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of COUNTED was done."""
    found: Counter[str] = Counter()

    def counted(what: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def count_and_do(*arguments: Any) -> Any:
            found[what] += 1
            return do(*arguments)

        return count_and_do

    for what, (module, name) in COUNTED.items():
        monkeypatch.setattr(module, name, counted(what, getattr(module, name)))
    return found


@pytest.fixture(autouse=True)
def mask(workdir: Path) -> Path:
    """An image whose left half is inside."""
    file = workdir / "mask.png"
    Image.fromarray(np.repeat([[255] * 32 + [0] * 32], 64, axis=0).astype(np.uint8)).save(file)
    return file


def regional(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """`regional ARGUMENTS` in this process, which must succeed."""
    monkeypatch.setattr("sys.argv", ["regional", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code


def once(jobs: int, canvases: int = 1) -> dict[str, int]:
    """The counts of a run of so many distinct jobs, on so many distinct canvases with their masks."""
    same = dict.fromkeys(("inputs read", "model folders opened", "masks drawn"), canvases)
    return {"jobs prepared": jobs, "runs composed": jobs} | same


@pytest.mark.parametrize("command", ["grid", "plan"])
def test_a_grid_is_looked_at_once_and_each_cell_is_planned_once(
    command: str, counts: Counter[str], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "grid.yaml").write_text(json.dumps({"job": JOB, "rows": 2, "columns": 3}))
    regional(monkeypatch, command, "grid.yaml", "--json")
    assert counts == once(6), "the first cell is the grid's own job"


def test_jobs_in_several_shards_are_planned_once(
    counts: Counter[str], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "jobs").mkdir()
    (workdir / "mask.png").rename(workdir / "jobs" / "mask.png")
    for seed in range(3):
        (workdir / "jobs" / f"{seed}.yaml").write_text(json.dumps(JOB | {"seed": seed}))
    regional(monkeypatch, "batch", "jobs/*.yaml", "--per-shard", "1", "--json")
    assert counts == once(3)


def test_a_start_image_does_not_make_a_second_plan(
    counts: Counter[str], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "job.yaml").write_text(json.dumps(JOB | {"init_image": "mask.png", "denoise": 0.6}))
    regional(monkeypatch, "render", "job.yaml", "--json")
    assert counts == once(1)


def test_other_canvases_and_masks_are_looked_at_too(counts: Counter[str]) -> None:
    known = Preparations(2**30)
    other_mask = {"regions": [JOB["regions"][0] | {"feather": 16}]}
    for change in ({}, {"seed": 1}, {"width": 128}, {"width": 128, "seed": 1}, other_mask, {}):
        known.look_up(parse_job(JOB | change))
    assert counts == once(5, canvases=3)


def test_files_that_change_between_two_runs_of_a_process_are_read_again(mask: Path) -> None:
    hashes: list[str] = []
    for picture in (None, np.eye(64, dtype=np.uint8) * 255):
        if picture is not None:
            Image.fromarray(picture).save(mask)
        with prepared_once(), prepared_once():
            hashes.append(preparations.preparations().look_up(parse_job(JOB)).job_hash)
    assert len(set(hashes)) == 2


def test_memory_is_bounded(counts: Counter[str]) -> None:
    """Those that come first are kept, as they are drawn first; who is drawn makes room."""
    jobs = [parse_job(JOB | {"seed": seed}) for seed in range(4)]
    one = preparations.own_bytes(resolve(jobs[0]))
    known = Preparations(2 * one)
    for job in jobs:
        known.look_up(job)
    assert counts["jobs prepared"] == 4
    for job in jobs[:2]:
        assert known.take(job).job is job
    assert counts["jobs prepared"] == 4
    known.look_up(jobs[2])
    known.take(jobs[2])
    known.take(jobs[0])
    assert counts["jobs prepared"] == 6


@pytest.mark.parametrize(
    "fields",
    [
        {"sampler": "euler_ancestral", "denoise": 0.5, "protect": [{"x": 0, "y": 0, "width": 0.25, "height": 1}]},
        {"composition": "sequential", "denoise": 0.5},
    ],
    ids=["joint", "sequential"],
)
def test_a_run_that_is_given_its_latent_later_is_the_same(fields: dict[str, Any]) -> None:
    mask = {"x": 0, "y": 0, "width": 0.5, "height": 1}
    asked = JOB | {"steps": 6, "regions": [{"prompt": "region", "mask": mask}], "init_image": "mask.png"} | fields
    job, levels = resolve(parse_job(asked)), open_folder("embedded").noise_schedule(Canvas(64, 64), 20)
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    masks = region_masks(job, {}, 8)
    protected = torch.eye(8) if "protect" in fields else None

    def tensors(run: SamplingRun[Any]) -> list[torch.Tensor]:
        return list(run.to_tensors(run.initial_state()).values())

    at_once = compose(job, {"embedded": levels}, clean, masks, protected)
    later = compose(job, {"embedded": levels}, torch.zeros(1, 4, 8, 8), masks, protected).with_init_latent(clean)
    assert segment_keys(later.segments(), "test", {}) == segment_keys(at_once.segments(), "test", {})
    assert all(torch.equal(one, two) for one, two in zip(tensors(later), tensors(at_once), strict=True))


def test_canvases_without_regions_are_let_go_too(counts: Counter[str]) -> None:
    """They have no tensors; so many sizes as there are would never have filled the memory."""
    known = Preparations(3 * job_inputs.OWN_BYTES)
    plain = [
        parse_job({"prompt": "a blue background", "steps": 1, "width": 64 + 8 * i, "height": 64}) for i in range(4)
    ]
    for job in (*plain, plain[-1], plain[0]):
        known.look_up(job, keep=False)
    assert counts["inputs read"] == 5, "the last canvas is still there, the first one is not"
