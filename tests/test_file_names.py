"""Names of files: no two jobs share them, any script may be in them, and nothing of a machine is told by them."""

from __future__ import annotations

import asyncio
import io
import json
import unicodedata
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import prefect_regional_diffusion.tasks.merge
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.tasks import save_images
from prefect_regional_diffusion.tasks.inputs.file_names import (
    file_stem,
    portable_files,
    portable_job,
    portable_name,
    renamed,
)
from prefect_regional_diffusion.tasks.inputs.job_files import read_job
from prefect_regional_diffusion.tasks.merge import MergeResult, merge
from prefect_regional_diffusion.tasks.publish import Record
from prefect_regional_diffusion.tasks.runtime import rendered_images
from prefect_regional_diffusion.tasks.runtime.png_pictures import png_files
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.rendered_images import all_rendered, is_rendered
from prefect_regional_diffusion.tasks.save_images import keep_pictures
from prefect_regional_diffusion.tasks.storage.keys import drawn
from prefect_regional_diffusion.tasks.storage.store import Store
from tests.tiny_controls import tiny_controlnet
from tests.tiny_ip_adapters import image_prompt_files
from tests.tiny_loras import save_lora, tiny_lora

PERSIAN = "می\u200cخواهم"  # noqa: RUF001 - letters of that script, and a joiner between two of them
HASH = sha256(b"a job").hexdigest()
FORBIDDEN = set('<>:"/\\|?*\0. ')
"""By Windows, by any file system, or at the start or the end of a name."""


def test_jobs_whose_hashes_begin_alike_do_not_share_their_files() -> None:
    """The same prompt with another seed: eight digits are equal."""
    job: dict[str, Any] = {"prompt": "a blue background", "steps": 2}
    one, two = (prepare(parse_job(job | {"seed": seed})).job_hash for seed in (69078, 76530))
    assert one != two
    assert file_stem(one, "same") != file_stem(two, "same")
    assert file_stem(one, "same").rpartition("-")[2] == one[:16]


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("円", "円"),
        ("Überfluß_2", "Überfluß_2"),
        (unicodedata.normalize("NFD", "é"), "é"),
        ("हिन्दी", "हिन्दी"),  # vowel signs are marks
        (PERSIAN, PERSIAN),
        ("jobs/../x.y", "jobs-x-y"),
        ("a\0b\nc\td", "a-b-c-d"),
        ('<>:"/\\|?*', "render"),
        ("🐈", "render"),
        ("\udcff", "render"),  # of a file name that is no UTF-8
        ("", "render"),
        ("円" * 80, "円" * 50),
    ],
)
def test_names_stay_themselves_as_far_as_file_systems_allow(name: str, readable: str) -> None:
    assert file_stem(HASH, name) == f"{readable}-{HASH[:16]}"


@pytest.mark.parametrize("picture", [file_stem(HASH, "job"), f"{file_stem(HASH, 'job')}-2"])
def test_a_picture_that_is_drawn_again_keeps_its_name(picture: str) -> None:
    assert file_stem(HASH, picture) == file_stem(HASH, "job")
    other = sha256(b"another job").hexdigest()
    assert file_stem(other, picture) == f"{picture}-{other[:16]}"


@given(st.text(st.characters(), max_size=80))
@example("é" * 80)
@example("-")
@example("\u0301")
def test_every_name_can_be_written(name: str) -> None:
    stem = file_stem(HASH, name)
    assert stem.endswith(f"-{HASH[:16]}")
    assert len(f".{stem}-16.png.{'0' * 32}.part".encode()) <= 255
    assert unicodedata.is_normalized("NFC", stem)
    assert not FORBIDDEN & set(stem)
    assert all(unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp") for letter in stem)
    assert stem[0] != "-"


def pictured(folder: Path, **fields: Any) -> Path:
    """A job file, with pictures, a LoRA and a ControlNet below its folder."""
    (folder / "pictures").mkdir(parents=True)
    for name in ("start", "mask"):
        Image.new("RGB", (64, 64), "white").save(folder / "pictures" / f"{name}.png")
    save_lora(tiny_lora(EMBEDDED, 1).kohya(), folder / "pictures" / "style.safetensors")
    tiny_controlnet(EMBEDDED, folder / "pictures" / "net", 1)
    image_prompt_files(folder / "pictures", EMBEDDED)
    job: dict[str, Any] = {
        "prompt": "a blue background",
        "width": 64,
        "height": 64,
        "steps": 2,
        "denoise": 0.5,
        "init_image": "pictures/start.png",
        "loras": [{"file": "pictures/style.safetensors"}],
        "controls": [{"file": "pictures/net", "image": "pictures/mask.png"}],
        "image_prompts": [{"file": "pictures/plain.safetensors", "image": str(folder / "pictures" / "red.png")}],
        "protect": [{"color_map": str(folder / "pictures" / "mask.png"), "color": [255, 255, 255]}],
        "regions": [{"prompt": "a red background", "mask": {"image": "pictures/mask.png"}}],
    }
    (folder / "job.json").write_text(json.dumps(job | fields))
    return folder / "job.json"


def started(job: RenderJob, store: Path) -> RenderContext:
    """A run with what decoding needs."""
    prepared = prepare(job)
    run = RenderContext(prepared, str(store))
    inputs = prepared.inputs.tensors or {"none": torch.zeros(1)}
    run.remember({run.mask_key: inputs, run.start_key: {"latent": torch.zeros(1)}})
    return run


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/home/me/jobs/./pictures/a.png", "pictures/a.png"),
        ("/home/me/jobs/./../a.png", "../a.png"),
        ("/home/me/a.png", "a.png"),
        ("/home/me/.//home/me/a.png", "a.png"),
        ("pictures/a.png", "pictures/a.png"),
        ("s3://bucket/a.png", "s3://bucket/a.png"),
        ("embedded", "embedded"),
    ],
)
def test_files_are_told_by_what_was_typed_or_by_their_own_name(path: str, told: str) -> None:
    assert portable_name(path) == told


def test_a_picture_tells_no_folder_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the PNG nor in the records; which content was meant is said, and what is told is a job again."""
    monkeypatch.setenv("REGIONAL_ASSET_ROOTS", "/")
    home = tmp_path / "home" / "me"
    job = read_job(pictured(home))
    run = started(job, tmp_path)
    (png,) = png_files(run, torch.zeros(1, 4, 8, 8))
    with Image.open(io.BytesIO(png)) as image:
        told, files = json.loads(image.info["regional-job"]), json.loads(image.info["regional-files"])
    assert str(tmp_path).encode() not in png
    assert str(tmp_path) not in json.dumps([told, files])
    assert (told["init_image"], told["regions"][0]["mask"]["image"]) == ("pictures/start.png", "pictures/mask.png")
    assert told["loras"][0]["file"] == "pictures/style.safetensors"
    assert (told["controls"][0]["file"], told["controls"][0]["image"]) == ("pictures/net", "pictures/mask.png")
    assert told["protect"][0]["color_map"] == "mask.png", "it was typed as an absolute path"
    content = sha256((home / "pictures" / "start.png").read_bytes()).hexdigest()
    assert files["init_image"] == {"name": "pictures/start.png", "sha256": content}
    assert files["model"] == {"name": "embedded", "sha256": run.model_keys["embedded"].digest}
    named = {"init_image", "protect.0.color_map", "regions.0.mask.image", "controls.0.image"}
    prompt = {f"image_prompts.0.{name}" for name in ("file", "image", "image_encoder")}
    assert set(files) == named | {"model", "loras.0.file", "controls.0.file"} | prompt
    told_prompt = {name: files[f"image_prompts.0.{name}"]["name"] for name in ("file", "image", "image_encoder")}
    assert told_prompt == {
        "file": "pictures/plain.safetensors",
        "image": "red.png",
        "image_encoder": "pictures/image_encoder",
    }

    # Beside the pictures again, it is the same job.
    told["protect"][0]["color_map"] = "pictures/mask.png"
    told["image_prompts"][0]["image"] = "pictures/red.png"
    (home / "again.json").write_text(json.dumps(told))
    assert prepare(read_job(home / "again.json")).job_hash == run.job_hash


def test_a_record_beside_a_picture_names_it_as_it_lies_there(tmp_path: Path) -> None:
    job = parse_job({"prompt": "x", "init_image": str(tmp_path / "a.png"), "denoise": 0.5})
    facts: dict[str, Any] = {
        "job": portable_job(job),
        "files": {},
        "job_hash": "h",
        "model_fingerprint": "m",
        "latents": "latents/x/00002",
        "images": [f"{tmp_path}/out/x.png"],
        **dict.fromkeys(("steps_computed", "steps_restored", "evaluations", "canvas_evaluations", "forwards"), 0),
        "seconds": {},
        "devices": (),
        "numerics": {},
        "versions": {},
    }
    kept = Record(**facts, store=f"{tmp_path}/store").as_file()
    assert kept["images"] == ["x.png"]
    assert str(tmp_path) not in json.dumps(kept)
    assert Record(**facts, store="s3://bucket/x").as_file()["store"] == "s3://bucket/x"
    assert Record(**facts, store=f"{tmp_path}/store").as_json()["images"] == [f"{tmp_path}/out/x.png"], "can be opened"


def test_model_folders_are_told_by_their_names_and_weights() -> None:
    mask = {"x": 0, "y": 0, "width": 1, "height": 1}
    regions = [{"prompt": "y", "model": "/home/me/models/b", "mask": mask}, {"prompt": "z", "mask": mask}]
    job = parse_job({"prompt": "x", "model": "/home/me/models/a", "regions": regions})
    told = portable_job(job)
    assert resolve(told).models == ("a", "b")
    assert portable_files(resolve(job), {"/home/me/models/a": "1", "/home/me/models/b": "2"}) == {
        "model": {"name": "a", "sha256": "1"},
        "regions.0.model": {"name": "b", "sha256": "2"},
    }
    assert renamed(job, lambda path: path) == job


def kept(run: RenderContext) -> None:
    """The run's pictures in the store, as a shard leaves them."""

    async def keep() -> None:
        made = asyncio.get_running_loop().create_future()
        finished: Any = SimpleNamespace(run=run, latents=torch.zeros(1, 4, 8, 8), devices=())
        await keep_pictures.fn([finished], 1, 1, made)

    asyncio.run(keep())


@pytest.fixture
def unshown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server to show anything on."""

    async def nothing(work: Any) -> None:
        work.close()

    monkeypatch.setattr(prefect_regional_diffusion.tasks.merge, "best_effort", nothing)


def merged(jobs: dict[str, RenderContext], store: Path, folder: Path) -> MergeResult:
    named = [NamedJob(name=name, job=run.job) for name, run in jobs.items()]
    hashes = {name: run.job_hash for name, run in jobs.items()}
    return asyncio.run(merge.fn(named, hashes, 2, str(store), str(folder)))


@pytest.mark.usefixtures("unshown")
def test_a_sheet_names_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONAL_ASSET_ROOTS", "/")
    run = started(read_job(pictured(tmp_path / "jobs")), tmp_path / "store")
    kept(run)
    done = merged({"円": run}, tmp_path / "store", tmp_path / "grid")
    written = {file.name: file.read_bytes() for file in (tmp_path / "grid").iterdir()}
    stem = f"円-{run.job_hash[:16]}"
    assert set(written) == {f"{stem}.png", f"{stem}.json", "sheet.png", "sheet.json"}
    told = json.loads(written["sheet.json"])
    assert told == {"sheet": "sheet.png", "images": {"円": [f"{stem}.png"]}, "missing": []}
    assert json.loads(written[f"{stem}.json"])["images"] == [f"{stem}.png"]
    assert [name for name, data in written.items() if str(tmp_path).encode() in data] == []
    assert done.images == {"円": [f"{tmp_path}/grid/{stem}.png"]}, "what is printed can be opened"


@pytest.mark.usefixtures("unshown")
def test_pictures_that_other_arithmetic_has_drawn_are_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"prompt": "a blue background", "width": 64, "height": 64, "steps": 2}
    run = started(parse_job(job), tmp_path)
    today = rendered_images.FORMAT
    for module in (save_images, rendered_images):
        monkeypatch.setattr(module, "FORMAT", today - 1)
    kept(run)
    assert is_rendered(run)
    for module in (save_images, rendered_images):
        monkeypatch.setattr(module, "FORMAT", today)
    assert not is_rendered(run)
    assert not asyncio.run(all_rendered(str(tmp_path), [run.job_hash]))
    assert merged({"it": run}, tmp_path, tmp_path / "grid").missing == ["it"]
    kept(run)
    assert asyncio.run(all_rendered(str(tmp_path), [run.job_hash]))
    assert merged({"it": run}, tmp_path, tmp_path / "grid").missing == []


def test_a_record_without_a_format_is_absent(tmp_path: Path) -> None:
    """As they were written before there was one."""
    run = started(parse_job({"prompt": "x", "width": 64, "height": 64, "steps": 2}), tmp_path)
    kept(run)
    key = drawn(run.job_hash)
    store = Store(str(tmp_path))
    store.write_json(key, {name: value for name, value in store.read_json(key).items() if name != "format"})
    assert not is_rendered(run)
