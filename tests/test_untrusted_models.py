"""Model folders that come with more than weights: refused, or not looked at; nothing of theirs is ever run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.whole_model import load_whole
from prefect_regional_diffusion.sampling_core.errors import BadInput, ModelError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.families.stable_diffusion import StableDiffusion
from prefect_regional_diffusion.sampling_core.models.model_key import ModelKey
from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from prefect_regional_diffusion.tasks.runtime.model_cache import denoiser, open_model
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.planting import module, pickled
from tests.watching import Memory

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(workdir: Path) -> Path:
    """A copy of the embedded model, under the default root."""
    return Path(shutil.copytree(EMBEDDED, workdir / "model"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def tokenizer(model: str) -> PromptTokenizer:
    opened = open_model(model)
    assert isinstance(opened, StableDiffusion)
    return opened.tokenizers[0]


def test_a_trap_works(workdir: Path) -> None:
    """The tests below prove nothing if it did not."""
    pickle.loads(pickled(workdir / "owned"))
    assert (workdir / "owned").exists()


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.ckpt", WEIGHTS])
def test_pickled_weights_are_refused(name: str, folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    (folder / "unet" / name).write_bytes(pickled(folder / "owned"))
    with pytest.raises(ModelError, match=r"^model: .*weights"):
        open_model("model")
    assert not (folder / "owned").exists()


def test_torch_saved_weights_are_refused(folder: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, folder / "unet" / WEIGHTS)
    with pytest.raises(ModelError, match=r"^model: .*weights"):
        open_model("model")


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("unet", ["evil", "Evil"]),
        ("vae", ["os", "system"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("scheduler", ["evil", "Evil"]),
        ("scheduler", ["diffusers", "../evil"]),
        ("scheduler", ["diffusers", "../evil.Scheduler"]),
        ("scheduler", ["diffusers", "StableDiffusionPipeline"]),
        ("scheduler", ["diffusers", "UNet2DConditionModel"]),
        ("scheduler", ["diffusers", ["DDIMScheduler"]]),
        ("unet", ["diffusers", "UNet2DConditionModel", "more"]),
    ],
)
def test_parts_of_other_classes_are_refused(part: str, names: list[str], folder: Path) -> None:
    edit(folder / "model_index.json", **{part: names})
    for place in (folder, folder / part):
        (place / "evil.py").write_text(module(folder / "owned"))
    with pytest.raises(ModelError, match=r"code that comes with a model is not run|model_index.json: (scheduler|unet)"):
        open_model("model")
    assert not (folder / "owned").exists()


def test_a_scheduler_is_never_loaded(folder: Path) -> None:
    """Whatever its class: the check knows it by its name alone."""
    edit(folder / "model_index.json", scheduler=["diffusers", "NoSuchScheduler"])
    load_whole(open_model("model"))


def test_a_model_in_the_place_of_the_scheduler_is_not_loaded(folder: Path) -> None:
    """Not even where it is put there after the check."""
    opened = open_model("model")
    shutil.copytree(EMBEDDED, folder / "scheduler", dirs_exist_ok=True)
    weights = folder / "scheduler" / "unet" / WEIGHTS
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    edit(folder / "model_index.json", scheduler=["diffusers", "StableDiffusionPipeline"])
    with patch("torch.load", side_effect=AssertionError("pickled weights are read")) as unpickling:
        load_whole(opened)
    assert not unpickling.called


def test_a_pipeline_of_its_own_is_refused(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name=["evil", "Evil"])
    (folder / "evil.py").write_text(module(folder / "owned"))
    with pytest.raises(ModelError, match=r"_class_name.*StableDiffusionPipeline"):
        open_model("model")
    assert not (folder / "owned").exists()


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("text_encoder", {"auto_map": {"AutoModel": "evil.Evil"}}),
        ("text_encoder", {"transformers_weights": "adapter_model.bin"}),
        ("text_encoder", {"attn_implementation": "somebody/kernel"}),
        ("text_encoder", {"_attn_implementation": "somebody/kernel"}),
        ("text_encoder", {"text_config": {"transformers_weights": "sub/w.safetensors"}}),
        ("text_encoder", {"text_config": {"attn_implementation": "somebody/kernel"}}),
        ("text_encoder", {"text_config": {"hidden_size": 96}}),
        ("unet", {"quantization_config": {"quant_method": "torchao"}}),
        ("unet", {"layers_per_block": 10**9}),
        ("unet", {"layers_per_block": 32}),
        ("unet", {"block_out_channels": [48, 96, 10**6]}),
        ("vae", {"block_out_channels": [16384, 24, 48, 64]}),
        ("text_encoder", {"vocab_size": 10**6}),
        ("text_encoder", {"hidden_size": True}),
    ],
)
def test_configurations_that_lead_elsewhere_are_refused(part: str, changes: dict[str, Any], folder: Path) -> None:
    edit(folder / part / "config.json", **changes)
    with pytest.raises(ModelError, match=f"{part}/config.json|other sizes than {part}|unet that does not read"):
        open_model("model")


def test_an_adapter_that_names_another_base_is_refused(folder: Path) -> None:
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(ModelError, match=r"has an adapter in its text_encoder"):
        open_model("model")


def test_a_shard_outside_the_folder_is_refused(folder: Path) -> None:
    shutil.move(folder / "unet" / WEIGHTS, folder.parent / "stolen.safetensors")
    index = {"weight_map": {"x": "../../stolen.safetensors"}}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"has an index of weights outside of it"):
        open_model("model")


@pytest.mark.parametrize(
    "file", ["model_index.json", f"unet/{WEIGHTS}", "text_encoder/config.json", "tokenizer/vocab.json"]
)
def test_links_may_lead_about_inside_the_roots_and_not_out(
    file: str, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    inside = folder.parent / "blob"
    shutil.move(folder / file, inside)
    (folder / file).symlink_to(inside)
    open_model("model")
    outside = tmp_path_factory.mktemp("elsewhere") / "blob"
    shutil.move(inside, outside)
    (folder / file).unlink()
    (folder / file).symlink_to(outside)
    with pytest.raises(BadInput, match=r"^model: .*whose links lead there too"):
        open_model("model")


@pytest.mark.parametrize("length", [2**20, 2**40, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused(length: int, folder: Path) -> None:
    (folder / "unet" / WEIGHTS).write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(100))
    with pytest.raises(ModelError, match=r"has damaged weights"):
        open_model("model")


def test_pickles_beside_good_weights_are_not_read(folder: Path) -> None:
    """It loads, and neither pickles nor further components are looked at."""
    mark = folder / "owned"
    for part in ("unet", "vae", "text_encoder", "image_encoder"):
        (folder / part).mkdir(exist_ok=True)
        for name in (
            "diffusion_pytorch_model.bin",
            "pytorch_model.bin",
            "model.ckpt",
            "adapter_model.bin",
            ".metadata",
        ):
            (folder / part / name).write_bytes(pickled(mark))
    (folder / "image_encoder" / "config.json").write_text("{}")
    (folder / "image_encoder" / "evil.py").write_text(module(mark))
    edit(folder / "model_index.json", image_encoder=["evil", "Evil"])
    load_whole(open_model("model"))
    assert not mark.exists()


def test_a_module_named_like_a_library_is_not_imported(folder: Path) -> None:
    for part, library in (("unet", "diffusers"), ("text_encoder", "transformers")):
        (folder / part / f"{library}.py").write_text(module(folder / "owned"))
    load_whole(open_model("model"))
    assert not (folder / "owned").exists()


@pytest.mark.parametrize("number", [2 * 10**7, 1, 1000.0, True, "1000", None])
def test_noise_levels_are_counted_within_bounds(number: object, folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=number)
    with pytest.raises(ModelError, match=r"scheduler_config.json: num_train_timesteps"):
        open_model("model")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"sample_size": 1, "sample_size": 2}',
        b'{"sample_size": NaN}',
        b"\xff\xfe{}",
        b'{"x": "\\ud800"}',
        b" " * 2**21,
        b"{}",
    ],
)
def test_hostile_json_is_refused(content: bytes, folder: Path) -> None:
    (folder / "unet" / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"unet/config.json"):
        open_model("model")


@pytest.mark.parametrize("place", ["unet/deep/deeper/x", "notes", "sub/w.safetensors"])
def test_links_out_are_refused_at_every_depth(
    place: str, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("elsewhere") / "w"
    outside.write_bytes(b"x")
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).symlink_to(outside)
    with pytest.raises(BadInput, match=r"whose links lead there too"):
        open_model("model")


def test_pipes_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "unet" / "pipe")
    with pytest.raises(ModelError, match=r"has a pipe, a socket or a device in it"):
        open_model("model")


def test_links_in_a_circle_are_refused(folder: Path) -> None:
    (folder / "unet" / "again").symlink_to(folder)
    with pytest.raises(ModelError, match=r"circle"):
        open_model("model")


def test_a_file_that_changed_since_it_was_checked_is_not_loaded(folder: Path) -> None:
    opened = open_model("model")
    weights = folder / "unet" / WEIGHTS
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"changed while it was read"):
        load_whole(opened)
    with pytest.raises(ModelError, match=r"changed while it was read"):
        opened.fingerprint()


def test_a_folder_of_too_many_files_is_not_walked_to_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_regional_diffusion.sampling_core.models.files.MOST_FILES", 50)
    open_model("model")
    for number in range(60):
        (folder / f"{number}.txt").touch()
    with pytest.raises(ModelError, match=r"has more than 50 files"):
        open_model("model")


def test_a_folder_that_is_too_deep_is_not_walked_to_its_end(folder: Path) -> None:
    (folder / "/".join("a" * 40)).mkdir(parents=True)
    with pytest.raises(ModelError, match=r"is more than 16 folders deep"):
        open_model("model")


@pytest.mark.parametrize(
    ("file", "allowed"),
    [
        ("unet/config.json", "more than 1048576"),
        ("tokenizer/tokenizer.json", "more than 33554432"),
        (f"vae/{WEIGHTS}", "damaged weights"),
    ],
)
def test_files_of_gigabytes_that_no_disk_has_are_refused_unread(file: str, allowed: str, folder: Path) -> None:
    """Sparse files: their size costs nothing, and reading them would."""
    with (folder / file).open("r+b") as stream:
        stream.truncate(20 * 2**30)
    memory = Memory()
    with pytest.raises(ModelError, match=allowed):
        open_model("model")
    assert memory.grown() < 2**28


@pytest.mark.parametrize(
    ("file", "changes", "allowed"),
    [
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "auto_map"),
        ("tokenizer_config.json", {"chat_template": "{{ ''.__class__.__mro__ }}"}, "chat_template"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": "x" * 10_000}}}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": {"content": "x"}}}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"model_max_length": 2}, "model_max_length"),
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {}}}, "model"),
        ("tokenizer.json", {"added_tokens": [{"id": 10**9, "content": "x"}]}, "added_tokens"),
        ("tokenizer.json", {"added_tokens": [{"id": n, "content": f"x{n}"} for n in range(5000)]}, "text_encoder's"),
    ],
)
def test_tokenizers_that_ask_for_more_are_refused(
    file: str, changes: dict[str, Any], allowed: str, folder: Path
) -> None:
    (folder / "tokenizer" / "evil.py").write_text(module(folder / "owned"))
    edit(folder / "tokenizer" / file, **changes)
    with pytest.raises(ModelError, match=allowed):
        open_model("model")
    assert not (folder / "owned").exists()


def test_patterns_of_a_tokenizer_are_not_used(folder: Path) -> None:
    """A regular expression that takes exponential time: how CLIP takes a text apart is known."""
    bomb = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    edit(folder / "tokenizer" / "tokenizer.json", pre_tokenizer=bomb, normalizer=None)
    (words,) = {tuple(tokenizer(name).ids("a" * 40 + "b")) for name in ("model", "embedded")}
    assert len(words) == tokenizer("model").length


def test_a_model_that_changed_after_planning_is_not_loaded(folder: Path) -> None:
    planned = ModelKey(open_model("model").fingerprint())
    edit(folder / "scheduler" / "scheduler_config.json", beta_end=0.013)
    loaded_parts.cache_clear()
    with pytest.raises(ModelError, match=r"is not the model any more that the job was planned with"):
        denoiser("model", open_model("model"), planned).__enter__()


def test_a_tokenizer_that_cannot_spell_the_unknown_is_refused(folder: Path) -> None:
    """Else it is built, and the library raises an error of its own at the first letter that it does not have."""
    file = folder / "tokenizer" / "tokenizer.json"
    found = json.loads(file.read_text())
    del found["model"]["vocab"]["<|endoftext|>"]
    file.write_text(json.dumps(found))
    with pytest.raises(ModelError, match=r"vocabulary lacks its unk_token"):
        open_model("model")


def test_latents_larger_than_a_job_may_have_are_refused(folder: Path) -> None:
    """The limits are counted with the latents of Stable Diffusion: 4 channels, 8 pixels a cell."""
    for part, names in {
        "unet": {"conv_in.weight": 1, "conv_out.weight": 0},
        "vae": {"decoder.conv_in.weight": 1},
    }.items():
        tensors = load_file(folder / part / WEIGHTS)
        for name, axis in names.items():
            shape = list(tensors[name].shape)
            shape[axis] = 1024
            tensors[name] = torch.zeros(shape)
        save_file(tensors, folder / part / WEIGHTS)
    edit(folder / "unet" / "config.json", in_channels=1024, out_channels=1024)
    edit(folder / "vae" / "config.json", latent_channels=1024)
    job = {"prompt": "x", "width": 4096, "height": 4096}
    prepare(parse_job(job))
    with pytest.raises(BadInput, match=r"^model: .*REGIONAL_MAX_TENSOR_BYTES"):
        prepare(parse_job(job | {"model": "model"}))
