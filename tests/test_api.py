"""Rendering from Python: pictures and record, progress, resume, errors, and as a task of another flow."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import prefect_regional_diffusion as regional
from prefect_regional_diffusion import BadInput, FileError, Rectangle, Region, RenderJob
from tests.processes import ROOT, post

JOB = RenderJob(
    prompt="a blue background",
    steps=3,
    regions=(Region(prompt="a red circle", mask=Rectangle(x=0, y=0, width=0.5, height=1)),),
)


def test_without_a_store_nothing_is_left_behind(workdir: Path) -> None:
    steps: list[tuple[int, int]] = []
    result = regional.render(JOB, on_step=lambda done, total: steps.append((done, total)))
    (image,) = result.images
    assert (image.mode, image.size) == ("RGB", (128, 128))
    assert steps[-1] == (3, 3)
    assert sorted(steps) == steps
    assert (result.record["steps_computed"], result.record["images"], result.record["store"]) == (3, [], None)
    assert list(workdir.iterdir()) == []


def test_with_a_store_the_same_job_is_resumed(tmp_path: Path) -> None:
    first = regional.render(JOB, store=tmp_path / "store", out=tmp_path / "out", name="left")
    again = regional.render(JOB, store=tmp_path / "store", out=tmp_path / "out", name="left")
    assert (again.record["steps_computed"], again.record["steps_restored"]) == (0, 3)
    assert again.images[0].tobytes() == first.images[0].tobytes()
    (file,) = first.record["images"]
    assert Path(file).parent == tmp_path / "out"
    assert Path(file).name.startswith("left")


def test_the_plan_is_what_the_run_costs() -> None:
    planned, drawn = regional.plan(JOB), regional.render(JOB).record
    assert (planned.steps, planned.evaluations, planned.forwards) == (3, drawn["evaluations"], drawn["forwards"])


def test_a_mistake_is_one_clear_error() -> None:
    for call in (regional.plan, regional.render):
        with pytest.raises(FileError, match=r"^init_image: nowhere.png does not exist \(looked for at /.*/nowhere"):
            call(JOB.model_copy(update={"init_image": "nowhere.png"}))


def test_the_caller_may_name_what_a_server_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roots hold for what comes over a server, and afterwards again."""
    from prefect_regional_diffusion.tasks.runtime.prepare import prepare

    picture = next((ROOT / "examples" / "pictures").glob("*.png"))
    monkeypatch.setenv("REGIONAL_ASSET_ROOTS", str(tmp_path))
    job = JOB.model_copy(update={"init_image": str(picture), "denoise": 0.5})
    assert regional.plan(job).steps == 3
    with pytest.raises(BadInput, match="init_image"):
        prepare(job)


def test_in_an_event_loop_it_says_what_to_await() -> None:
    async def call() -> None:
        regional.render(JOB)

    with pytest.raises(RuntimeError, match="await arender"):
        asyncio.run(call())


def test_as_a_task_a_job_names_only_what_the_settings_allow(workdir: Path) -> None:
    """A flow's parameters may come over a server; the flow's machine says where things are kept."""
    picture = next((ROOT / "examples" / "pictures").glob("*.png"))
    job = JOB.model_copy(update={"init_image": str(picture), "denoise": 0.5})
    with pytest.raises(BadInput, match="init_image"):
        asyncio.run(regional.render_task.fn(job))
    with pytest.raises(BadInput, match=r"^out: "):
        asyncio.run(regional.render_task.fn(JOB, out=str(workdir.parent)))
    result = asyncio.run(regional.render_task.fn(JOB, name="mine"))
    (file,) = result.record["images"]
    assert Path(file).parent == Path("renders")
    assert Path(file).read_bytes()
    assert (workdir / ".regional" / "store").is_dir()


ALBUM = """
from prefect import flow
from prefect_regional_diffusion import RenderJob, render_task

@flow
async def album(job: RenderJob) -> str:
    return (await render_task(job, name="mine")).record["images"][0]

if __name__ == "__main__":
    import asyncio, sys
    print(asyncio.run(album(RenderJob.model_validate_json(sys.argv[1]))))
"""


@pytest.mark.e2e
def test_as_a_task_of_another_flow(workdir: Path, server: str, env: dict[str, str]) -> None:
    (workdir / "album.py").write_text(ALBUM)
    command = [sys.executable, "album.py", JOB.model_dump_json()]
    done = subprocess.run(command, cwd=workdir, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(workdir / done.stdout.strip()) as drawn:
        assert drawn.tobytes() == regional.render(JOB).images[0].tobytes()
    (run,) = post(server, "flow_runs/filter", {"flows": {"name": {"any_": ["album"]}}})
    tasks = post(server, "task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    assert {"build masks", "encode prompts", "load model embedded", "decode"} <= {task["name"] for task in tasks}
