"""What a person types and reads: bad input is one line and exit code 2, before any weights are loaded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from prefect_regional_diffusion.flows.cli import main as cli
from prefect_regional_diffusion.sampling_core.errors import RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.tasks.inputs.image_files import read_image_files
from prefect_regional_diffusion.tasks.machine.settings import settings
from tests.processes import EXAMPLES

JOB: dict[str, Any] = {
    "prompt": "a blue background",
    "regions": [{"prompt": "a red circle", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}],
}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights fails the test: everything here must be known before."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("prefect_regional_diffusion.sampling_core.models.diffusers_folder.load_network", refuse)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of `regional ARGUMENTS`."""
    monkeypatch.setattr("sys.argv", ["regional", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def job_file(folder: Path, **changes: Any) -> Path:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(JOB | changes))
    return file


def region(mask: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"prompt": "a red circle", "mask": mask}]


BAD_JOBS: list[tuple[dict[str, Any], list[str]]] = [
    ({"promt": "x"}, ["promt: 'x'", "prompt (did you mean this?)"]),
    ({"regions": region({"x": 0.9, "y": 0, "width": 0.5, "height": 1})}, ["regions.0.mask.width: 0.5", "at most 0.1"]),
    ({"regions": region({"points": [[0.2, 0.5], [0.4, 0.5], [0.6, 0.5]]})}, ["regions.0.mask:", "empty"]),
    (
        {"regions": region({"x": 0, "y": 0, "width": 0.02, "height": 0.02})},
        ["regions.0.mask:", "one latent cell, 8 x 8"],
    ),
    ({"regions": region({"image": "none.png"})}, ["regions.0.mask.image: ", "none.png does not exist"]),
    ({"regions": region({"image": "text.png"})}, ["regions.0.mask.image: ", "text.png is a text file, not an image"]),
    ({"regions": region({"image": "black.png"})}, ["regions.0.mask:", "empty"]),
    (
        {"regions": region({"color_map": "black.png", "color": [1, 2, 3]})},
        ["regions.0.mask.color: [1, 2, 3]", "#000000 [0, 0, 0]; or a tolerance of 3 or more"],
    ),
    ({"model": "hollow"}, ["model:", "hollow", "diffusion_pytorch_model.safetensors is missing"]),
    ({"model": "nowhere"}, ["model: /", "nowhere does not exist"]),
    ({"steps": 0}, ["steps: 0", "1 or more"]),
    ({"seed": 2**64}, [f"seed: {2**64}", f"at most {2**64 - 1}"]),
    ({"width": 130}, ["width: 130", "a multiple of 8"]),
]


@pytest.mark.parametrize("command", ["plan", "render"])
@pytest.mark.parametrize(
    ("changes", "says"), BAD_JOBS, ids=[says[0].split(":")[0] + f"-{i}" for i, (_, says) in enumerate(BAD_JOBS)]
)
def test_bad_input(
    command: str,
    changes: dict[str, Any],
    says: list[str],
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.new("RGB", (16, 16)).save("black.png")
    Path("text.png").write_text("no picture")
    shutil.copytree(EMBEDDED, "hollow", ignore=shutil.ignore_patterns("*.safetensors"))
    assert run(monkeypatch, command, job_file(workdir, **changes)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert all(text in err for text in says), err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt: [", "job.yaml is not valid YAML (line 1: "),
        ("prompt: !!timestamp 2024-13-45", "is not valid YAML (line 1: "),
        ("seed: !!bool maybe", "is not valid YAML (line 1: 'maybe' is no bool)"),
        ("[" * 3000, "is not valid YAML"),
        ("seed: 0x" + "f" * 5000, "is not valid YAML"),
        ("", "job.yaml is empty"),
        ("- 1", "job.yaml is a list and no mapping of fields, such as"),
        (None, "job.yaml does not exist in /"),
    ],
    ids=range(8),
)
def test_bad_files(
    text: str | None, says: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        Path("job.yaml").write_text(text)
    assert run(monkeypatch, "plan", "job.yaml") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "I;16", "RGBA", "LA"])
def test_white_is_inside_in_every_kind_of_image(mode: str, workdir: Path) -> None:
    """The left half is white and the right half black, or transparent where the format can."""
    half = np.zeros((16, 32), dtype=np.uint8)
    half[:, :16] = 255
    if mode == "I;16":
        Image.fromarray(half.astype(np.uint16) * 257).save("mask.png")
    elif mode.endswith("A"):
        white = Image.new("L", (32, 16), 255)
        Image.merge("LA", [white, Image.fromarray(half)]).convert(mode).save("mask.png")
    else:
        Image.fromarray(half).convert(mode).save("mask.png")
    job = parse_job(JOB | {"regions": region({"image": "mask.png"})})
    photo = read_image_files(resolve(job)).photos["mask.png"]
    assert photo[:, :16].eq(255).all()
    assert photo[:, 16:].eq(0).all()


@pytest.mark.parametrize("kind", ["folder", "device", "float"])
def test_odd_mask_files_are_refused(kind: str, workdir: Path) -> None:
    path = {"folder": str(workdir), "device": "/dev/zero", "float": "float.tiff"}[kind]
    says = {
        "folder": f"{workdir} is a folder, and no image file",
        "device": "'/dev/zero' is not allowed; allowed: a readable image file under REGIONAL_ASSET_ROOTS (.)",
        "float": "float.tiff has floating-point pixels",
    }
    Image.fromarray(np.zeros((16, 16), dtype=np.float32)).save("float.tiff")
    with pytest.raises(RegionalError, match=rf"^regions.0.mask.image: {re.escape(says[kind])}"):
        read_image_files(resolve(parse_job(JOB | {"regions": region({"image": path})})))


def test_a_huge_mask_image_is_refused(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("1", (10_000, 10_000)).save("huge.png")
    assert run(monkeypatch, "plan", job_file(workdir, regions=region({"image": "huge.png"}))) == 2
    assert "10000 x 10000 pixels" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["nothing://x", "github://x", "/proc/no/such/place"])
def test_an_unusable_store_is_refused(
    url: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "render", job_file(workdir), "--store", url) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"store {url} does not exist" if url.startswith("/") else f"store: '{url}' is not allowed")
    assert err.count("\n") == 1


def test_an_unusable_output_folder_is_refused(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").write_text("a file")
    assert run(monkeypatch, "render", job_file(workdir), "--out", "taken") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"--out {workdir}/taken is no folder, or has a file where a folder should be: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("name", "value"), [("REGIONAL_DTYPE", "int8"), ("REGIONAL_DEVICE", "gpu")])
def test_bad_settings_are_refused(
    name: str, value: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    settings.cache_clear()
    try:
        assert run(monkeypatch, "plan", job_file(workdir)) == 2
    finally:
        settings.cache_clear()
    err = capsys.readouterr().err
    assert err.startswith(f"{name}: '{value}'")
    assert err.count("\n") == 1


def test_plan_as_json(workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", job_file(workdir), "--json", "--set", "steps=10", "--set", "regions.0.prompt=a black cross"]
    assert run(monkeypatch, *arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["steps"], plan["evaluations"], plan["forwards"]) == (10, 2 + 9 * 3, 10)
    assert plan["warnings"] == []
    assert plan["memory_bytes"] > sum(f.stat().st_size for f in EMBEDDED.rglob("*.safetensors"))


def test_json_jobs_and_masks_beside_the_job(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workdir / "elsewhere"
    folder.mkdir()
    Image.new("L", (8, 8), 255).save(folder / "mask.png")
    (folder / "job.json").write_text(json.dumps(JOB | {"regions": region({"image": "mask.png"})}))
    assert run(monkeypatch, "plan", folder / "job.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["evaluations"] == 2 + 19 * 2


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_have_nothing_to_warn_of(
    example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "plan", example) == 0
    warned = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line]
    # What that node draws always keeps some noise, and it says so.
    always = ["Warning: noise of sigma 0.0292 is left"] if example.stem == "regional_sampler_advanced" else []
    assert [line[:38] for line in warned] == always


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("render", "Default: renders."),
        ("render", "Default: about every second."),
        ("grid", "Default: in this process."),
        ("batch", "Default: 32."),
        ("submit", "Default: that of the flow that draws the job."),
        ("submit", "Default: the deployment's."),
    ],
)
def test_help_says_what_is_done_by_default(
    command: str, default: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, "--help") == 0
    assert default in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("command", [[], ["render"], ["plan"]])
def test_help_shows_every_option(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *command, "--help") == 0
    out = capsys.readouterr().out
    assert ("--json" in out) == bool(command)
