"""The command `regional render` end to end: real processes, a real Prefect server, kills, and what is left behind."""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prefect_regional_diffusion.tasks.inputs.job_files import read_job
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.forked import render_json
from tests.killing import kill_and_render_again
from tests.processes import EXAMPLES, environment, post

pytestmark = pytest.mark.e2e
JOB = next(path for path in EXAMPLES if path.stem == "two_halves")
# The tests of an example share one undisturbed run, so they go to the same worker.
GROUPED = [pytest.param(path, marks=pytest.mark.xdist_group(path.stem), id=path.stem) for path in EXAMPLES]
KILLED = ("inpaint", "mask_grid", "mixed_samplers", "regional_sampler", "two_samplers")
"""One example of each way to go on: with a picture, a grid, unlike samplers, step by step, within a pass."""


@pytest.fixture
def env(env: dict[str, str]) -> dict[str, str]:
    # A finished run would throw states away while a test counts them.
    return env | {"REGIONAL_KEEP": "all"}


Undisturbed = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="session")
def undisturbed(server: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The record of an example rendered in one go (once per example); its image path is absolute."""

    @cache
    def rendered(example: Path) -> dict[str, Any]:
        home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("undisturbed")
        return render_json([example, "--out", folder], folder, environment(home, server))

    return rendered


@pytest.mark.parametrize("example", GROUPED)
def test_every_example_renders_as_planned(example: Path, undisturbed: Undisturbed) -> None:
    record = undisturbed(example)
    with Image.open(record["images"][0]) as image:
        assert image.size == (record["job"]["width"], record["job"]["height"])
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(2**24) or []) > 10, "an empty picture"
    plan = prepare(read_job(example, []))
    assert (record["evaluations"], record["forwards"]) == (plan.cost.evaluations, plan.cost.forwards)
    assert (record["steps_computed"], record["steps_restored"]) == (plan.run.steps, 0)


def test_what_a_run_leaves(tmp_path: Path, env: dict[str, str], server: str) -> None:
    """PNG with its job, JSON record, and on the server: readable task names, a small preview, a summary."""
    record = render_json([JOB, "--out", tmp_path / "o", "--store", tmp_path / "s", "--set", "seed=77"], tmp_path, env)
    png = Path(record["images"][0])
    with Image.open(png) as image:
        assert json.loads(image.info["regional-job"])["seed"] == 77
    beside = json.loads(png.with_suffix(".json").read_text())
    assert record == beside | {"images": [str(png)], "store": str(tmp_path / "s")}
    assert beside["images"] == [png.name]
    # Either may be handed in as a job again.
    assert read_job(png) == read_job(png.with_suffix(".json"))
    assert read_job(png).model_copy(update={"model": "embedded"}) == read_job(JOB, ["seed=77"])

    runs = post(server, "flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})
    assert (runs[0]["name"], runs[0]["state_type"]) == ("render two_halves", "COMPLETED")
    mine = {"flow_runs": {"id": {"any_": [runs[0]["id"]]}}}
    names: set[str] = set()
    for _ in range(100):  # task runs reach the server as events, a little later
        names = {task["name"].split("-")[0].rstrip("0123456789 ") for task in post(server, "task_runs/filter", mine)}
        if len(names) == 7:
            break
        time.sleep(0.1)
    assert names == {
        "build masks",
        "load model embedded",
        "encode prompts",
        "base",
        "regional steps",
        "decode",
        "publish",
    }
    artifacts = {
        a["key"]: a for a in post(server, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [runs[0]["id"]]}}})
    }
    kind, _, data = artifacts["picture"]["data"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert len(base64.b64decode(data)) < 100_000
    with Image.open(io.BytesIO(base64.b64decode(data))) as preview, Image.open(png) as picture:
        assert preview.size == picture.size
    assert "a red striped circle" in artifacts["summary"]["data"]


# Before anything is stored, and when so many states are in the store; the last of eleven is the finished latent.
@pytest.mark.xdist_group("two_halves")
@pytest.mark.parametrize("states", [0, 1, 4, 7, 11])
def test_killed_at_different_moments(
    states: int, tmp_path: Path, env: dict[str, str], undisturbed: Undisturbed
) -> None:
    """Without a server; the undisturbed run has one, and the pixels are the same."""
    del env["PREFECT_API_URL"]
    kill_and_render_again(JOB, states, undisturbed(JOB), tmp_path, env)


@pytest.mark.parametrize("example", [param for param in GROUPED if param.id in KILLED])
def test_every_kind_of_run_survives_a_kill(
    example: Path, tmp_path: Path, env: dict[str, str], undisturbed: Undisturbed
) -> None:
    kill_and_render_again(example, 3, undisturbed(example), tmp_path, env)


@pytest.mark.xdist_group("two_halves")
def test_chunk_size_changes_no_pixel(tmp_path: Path, env: dict[str, str], undisturbed: Undisturbed) -> None:
    pixels = {Image.open(undisturbed(JOB)["images"][0]).tobytes()}
    for chunk in (1, 50):
        record = render_json([JOB, "--chunk", chunk, "--store", f"store-{chunk}"], tmp_path, env)
        pixels.add(Image.open(tmp_path / record["images"][0]).tobytes())
    assert len(pixels) == 1


def test_a_damaged_state_is_computed_again(tmp_path: Path, env: dict[str, str]) -> None:
    first = render_json([JOB, "--chunk", 5, "--store", "s"], tmp_path, env)
    before = (tmp_path / first["images"][0]).read_bytes()
    # Folders are named by hashes, files by their step.
    newest = max((tmp_path / "s").glob("latents/*/*.safetensors"), key=lambda state: state.stem)
    newest.write_bytes(newest.read_bytes()[:-100])
    shutil.rmtree(tmp_path / "s" / "pictures")
    second = render_json([JOB, "--chunk", 5, "--store", "s"], tmp_path, env)
    assert 0 < second["steps_restored"] < 20
    assert (tmp_path / second["images"][0]).read_bytes() == before


@pytest.mark.xdist_group("two_halves")
def test_without_a_server_the_same_is_drawn(tmp_path: Path, undisturbed: Undisturbed) -> None:
    home = tmp_path / "prefect"
    home.mkdir()
    record, other = render_json([JOB], tmp_path, environment(home)), undisturbed(JOB)
    with Image.open(tmp_path / record["images"][0]) as one, Image.open(other["images"][0]) as two:
        assert one.tobytes() == two.tobytes()
    told = ("job_hash", "latents", "steps_computed", "evaluations", "forwards")
    assert {name: record[name] for name in told} == {name: other[name] for name in told}
    assert record["seconds"].keys() == other["seconds"].keys()
