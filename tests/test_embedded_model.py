"""The model that comes with the package: standard files, loaded by diffusers and by us, and it knows its colours."""

# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false
# diffusers annotates what its classes return with all that it can be.

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.adherence import draw
from benchmarks.reading import read_scene
from benchmarks.whole_model import WholeModel, embedded_model, load_whole
from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from training.canvases import place
from training.scenes import PALETTE, Scene, all_scenes, held_out


@pytest.fixture(scope="module")
def model() -> WholeModel:
    return embedded_model()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the model folder that a test may break."""
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model"))


def test_is_small_and_complete() -> None:
    files = [file for file in EMBEDDED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 16e6
    assert {"model_index.json", "MODEL_CARD.md", "vocab.json", "merges.txt"} <= {file.name for file in files}
    assert not [file for file in files if file.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]


def test_diffusers_loads_and_draws_without_our_code() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        "a blue background",
        num_inference_steps=20,
        guidance_scale=4.0,
        width=128,
        height=128,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images[0]
    assert read_scene((picture * 255).round().astype(np.uint8)).background == "blue"


def test_backgrounds_are_drawn_as_asked(model: WholeModel) -> None:
    """Of the eight colours all are right; now and then (2 of 32 when measured) something lies on them."""
    seen = {
        color: read_scene(draw(parse_job({"prompt": f"a {color} background", "width": 160, "seed": 6}), model))
        for color in PALETTE
    }
    assert [scene.background for scene in seen.values()] == list(PALETTE)
    assert sum(scene == Scene(color) for color, scene in seen.items()) >= 7


def test_regions_get_their_own_colors(model: WholeModel) -> None:
    masks = [{"x": x, "y": 0, "width": 0.5, "height": 1} for x in (0, 0.5)]
    prompts = ["a yellow background", "a purple background"]
    regions = [{"prompt": prompt, "mask": mask} for prompt, mask in zip(prompts, masks, strict=True)]
    job = parse_job({"prompt": "a black background", "width": 192, "regions": regions, "base_only_steps": 1})
    picture = draw(job, model)
    assert read_scene(picture[:, :88]).background == "yellow"
    assert read_scene(picture[:, 104:]).background == "purple"


def test_prompts_longer_than_the_model_reads_are_cut(model: WholeModel) -> None:
    encoded = [model.text_encoder.encode(prompt) for prompt in ("red " * 50, "")]
    assert {tuple(one["prompt_embeds"].shape) for one in encoded} == {(1, 20, 96)}


def test_reader_reads_what_the_script_draws() -> None:
    rng = np.random.default_rng(0)
    for scene in all_scenes()[::9]:
        picture = place(scene, rng, (128, 160), (0, 0, 128, 160))
        assert read_scene((picture * 255).round().astype(np.uint8)) == scene


def test_some_captions_are_held_out() -> None:
    share = sum(map(held_out, all_scenes())) / len(all_scenes())
    assert 0.08 < share < 0.18


def test_fingerprint_is_of_content(copy: Path) -> None:
    before = open_folder(str(copy)).fingerprint()
    assert before == open_folder("embedded").fingerprint()
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({key: value + (key == name) for key, value in tensors.items()}, weights, metadata={"format": "pt"})
    assert open_folder(str(copy)).fingerprint() != before


@pytest.mark.parametrize(
    "file",
    [
        *(
            f"{part}/{name}"
            for part in ("unet", "vae", "text_encoder", "tokenizer")
            for name in ("README.md", ".DS_Store")
        ),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"),
        *("unet/diffusion_pytorch_model.bin", "scheduler/notes.json", "MODEL_CARD.md", "vae/tokenizer.json"),
    ],
)
def test_files_that_nobody_reads_do_not_count(copy: Path, file: str) -> None:
    before = open_folder(str(copy)).fingerprint()
    (copy / file).write_bytes(b"notes")
    assert open_folder(str(copy)).fingerprint() == before


@pytest.mark.parametrize(
    "file",
    [
        *("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"),
        *(f"tokenizer/{name}.json" for name in ("tokenizer", "tokenizer_config", "vocab", "special_tokens_map")),
        *("tokenizer/added_tokens.json", "tokenizer/merges.txt"),
    ],
)
def test_every_file_that_is_read_counts(copy: Path, file: str) -> None:
    before = open_folder(str(copy)).fingerprint()
    content = (copy / file).read_text() if (copy / file).exists() else "{}"
    (copy / file).write_text(content + "\n")
    assert open_folder(str(copy)).fingerprint() != before


def test_all_that_the_libraries_open_counts(copy: Path) -> None:
    """And the libraries open nothing themselves."""
    opened: set[Path] = set()
    listening = True

    def listen(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(str(copy)):
            opened.add(Path(arguments[0]).relative_to(copy))

    # A hook cannot be taken off again.
    sys.addaudithook(listen)
    try:
        load_whole(open_folder(str(copy)))
    finally:
        listening = False
    names = {file.as_posix() for file in opened if file.suffix != ".safetensors"} - {"model_index.json"}
    assert {"unet/config.json", "tokenizer/tokenizer_config.json"} <= names
    for name in names:
        before = open_folder(str(copy)).fingerprint()
        (copy / name).write_text((copy / name).read_text() + "\n")
        assert open_folder(str(copy)).fingerprint() != before, name


def test_weights_in_shards_count_with_their_index(copy: Path) -> None:
    whole = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, of_it in parts.items():
        save_file({name: tensors[name] for name in of_it}, copy / "unet" / file, metadata={"format": "pt"})
    index = copy / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    weight_map = {name: file for file, of_it in parts.items() for name in of_it}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    whole.unlink()
    found = [open_folder(str(copy)).fingerprint()]
    index.write_text(index.read_text() + "\n")
    found.append(open_folder(str(copy)).fingerprint())
    changed = {name: tensors[name] + 1 for name in parts["two.safetensors"]}
    save_file(changed, copy / "unet" / "two.safetensors", metadata={"format": "pt"})
    found.append(open_folder(str(copy)).fingerprint())
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model_index.json", None, "model_index.json"),
        ("model_index.json", {"_class_name": "HunyuanDiTPipeline"}, "HunyuanDiTPipeline"),
        ("unet/config.json", None, "unet/config.json"),
        ("unet/diffusion_pytorch_model.safetensors", None, "diffusion_pytorch_model.safetensors is missing"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("vae/config.json", {}, "block_out_channels"),
        ("model_index.json", [], "not a mapping"),
    ],
)
def test_unusable_folders_are_refused(copy: Path, file: str, content: Any, says: str) -> None:
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"^model: ") as refused:
        open_folder(str(copy))
    assert says in str(refused.value)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_damaged_weights_are_refused(copy: Path, part: str) -> None:
    weights = copy / f"{part}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"has damaged weights"):
        open_folder(str(copy))


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_incomplete_weights_are_refused(copy: Path, part: str) -> None:
    """The libraries would fill the gap with random numbers."""
    weights = copy / f"{part}.safetensors"
    tensors = load_file(weights)
    tensors.pop(sorted(tensors)[-1])
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"weights"):
        load_whole(open_folder(str(copy)))


def test_any_split_of_forwards_gives_the_same_picture(model: WholeModel) -> None:
    masks = [{"x": x, "y": 0, "width": 0.5, "height": 1} for x in (0, 0.5)]
    regions = [
        {"prompt": f"a {name} background", "mask": mask} for name, mask in zip(("red", "blue"), masks, strict=True)
    ]
    job = parse_job({"prompt": "a black background", "regions": regions, "steps": 6})
    whole, *others = (draw(job, model, most).astype(int) for most in (None, 1, 2, 3))
    for other in others:
        assert abs(whole - other).max() <= 1
