"""A file that is no whole model of a known family is refused in one line that says why, before weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import save_file

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models import loading
from prefect_regional_diffusion.sampling_core.models.family import Part
from prefect_regional_diffusion.sampling_core.models.folder import open_checkpoint
from prefect_regional_diffusion.sampling_core.models.single_file.ldm_unet import FIRST
from tests.original_layouts import Tensors, original
from tests.tiny_models import tiny_sd, tiny_sdxl

X = torch.zeros(4, 4)
FILE = Path("one.safetensors")
PARTS: tuple[Part, ...] = ("text_encoder", "denoiser", "autoencoder")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("folders")
    tiny_sd(top / "sd1")
    tiny_sd(top / "sd2", sd2=True)
    tiny_sdxl(top / "sdxl")
    return top


@pytest.fixture(autouse=True)
def no_weights_are_read(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_of: object) -> NoReturn:
        raise AssertionError("weights are read")

    monkeypatch.setattr(loading, "read_tensors", refused)


def _checked(model: str) -> None:
    checkpoint = open_checkpoint(model)
    for part in PARTS:
        checkpoint.check_weights(part)


def refusal(model: str = "one.safetensors") -> str:
    """The line that opening a model, or checking its parts, ends with."""
    with pytest.raises(ModelError) as refused:
        _checked(model)
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith("model: ")
    return line


def put(folder: Path, kind: str, change: Callable[[Tensors], object] = lambda tensors: None) -> None:
    """A file of this kind, changed, with its configurations beside it."""
    tensors = original(folder / kind, kind)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, FILE)
    shutil.copytree(folder / kind, FILE.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))


def without(prefix: str) -> Callable[[Tensors], object]:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)]


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".gguf"])
def test_pickles_by_name(suffix: str) -> None:
    Path(f"one{suffix}").write_bytes(b"\x80\x04.")
    assert "is no .safetensors file: others may run code" in refusal(f"one{suffix}")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "a LoRA or another adapter"),
        (["unet.mid_block.attentions.0.proj_in.lora_A.weight"], "a LoRA or another adapter"),
        (["lora_unet_x.hada_w1_a"], "a LoRA or another adapter"),
        (["control_model.input_hint_block.0.weight"], "a ControlNet"),
        (["ip_adapter.1.to_k_ip.weight", "image_proj.proj.weight"], "an IP-Adapter"),
        (["emb_params"], "a textual inversion"),
        (["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.model.ln_final.bias"], "refiner"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one component in diffusers' names"),
        (["text_model.final_layer_norm.bias"], "a text encoder alone"),
        (["encoder.down.0.block.0.conv1.weight"], "an autoencoder alone"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "lacks a denoiser: it is a FLUX.1 file"),
        (["model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.bias"], "it is a Stable Diffusion 3 file"),
        (["double_blocks.0.processor.proj_lora1.down.weight"], "a LoRA or another adapter"),
        (["double_blocks.0.img_mod.lin.bias", "controlnet_blocks.0.weight"], "a ControlNet"),
        (["cap_embedder.0.weight"], "a model of another family"),
        (["linear.weight"], "(a tensor of it is 'linear.weight')"),
    ],
)
def test_what_is_no_whole_model_is_called_what_it_is(names: list[str], told: str) -> None:
    save_file(dict.fromkeys(names, X) if len(names) == 1 else {name: X.clone() for name in names}, FILE)
    assert told in refusal()


@pytest.mark.parametrize(
    ("kind", "prefix", "told"),
    [
        ("sd1", "first_stage_model.", "lacks an autoencoder: it is a Stable Diffusion 1 file"),
        ("sd1", "cond_stage_model.", "lacks a text encoder"),
        ("sd2", "model.diffusion_model.", "lacks a denoiser: it is a Stable Diffusion 2 file"),
        ("sdxl", "first_stage_model.", "lacks an autoencoder: it is a Stable Diffusion XL file"),
        ("sdxl", "conditioner.embedders.0.", "lacks a text encoder"),
        ("sdxl", "conditioner.embedders.1.", "lacks a second text encoder"),
        ("sdxl", "conditioner.", "lacks a text encoder"),
    ],
)
def test_a_part_that_is_missing(folders: Path, kind: str, prefix: str, told: str) -> None:
    put(folders, kind, without(prefix))
    assert told in refusal()


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("sd1", "model.diffusion_model.input_blocks.1.0.in_layers.2.bias", "down_blocks.0.resnets.0.conv1.bias"),
        (
            "sd2",
            "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias",
            "layers.1.self_attn.k_proj.bias",
        ),
        ("sdxl", "conditioner.embedders.1.model.text_projection", "text_projection.weight"),
        ("sdxl", "first_stage_model.decoder.mid.attn_1.q.weight", "decoder.mid_block.attentions.0.to_q.weight"),
    ],
)
def test_a_tensor_that_is_missing_is_named(folders: Path, kind: str, name: str, told: str) -> None:
    put(folders, kind, without(name))
    assert "lacks" in refusal()
    assert told in refusal()


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.1.0.in_layers.7.bias",
        "model.diffusion_model.label_emb.0.4.weight",
        "first_stage_model.decoder.extra.weight",
        "conditioner.embedders.1.model.visual.proj",
        "other.weight",
    ],
)
def test_a_tensor_that_no_network_has_is_named(folders: Path, name: str) -> None:
    put(folders, "sdxl", lambda tensors: tensors.update({name: X}))
    assert name.rpartition(".embedders.1.model.")[2].split("model.")[-1].split(".")[-2] in refusal()
    assert "without a place in its" in refusal() or "that has no place there" in refusal()


def test_a_vocabulary_of_its_own_is_asked_for(folders: Path) -> None:
    put(folders, "sdxl")
    shutil.rmtree("one/tokenizer_2")
    assert "has no tokenizer in one/tokenizer_2 beside it: its text encoder knows 514 tokens" in refusal()


def test_what_stable_diffusion_2_predicts_is_asked_for(folders: Path) -> None:
    put(folders, "sd2")
    Path("one/scheduler/scheduler_config.json").unlink()
    assert "has no one/scheduler/scheduler_config.json beside it" in refusal()


def test_configurations_of_another_model_do_not_fit(folders: Path) -> None:
    put(folders, "sd1")
    file = Path("one/unet/config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": [32, 96, 96]}))
    assert "has weights of other sizes than unet/config.json says" in refusal()
    shutil.copy(folders / "sdxl" / "model_index.json", "one/model_index.json")
    assert "_class_name" in refusal()


def test_a_model_that_is_told_of_more_than_a_latent(folders: Path) -> None:
    """An inpainting model; nothing lies beside the file, so its shapes alone say so."""
    first = "model.diffusion_model.input_blocks.0.0.weight"
    put(folders, "sd1", lambda tensors: tensors.update({first: torch.zeros(32, 9, 3, 3)}))
    Path("one/unet/config.json").unlink()
    assert "does not read and write the latents of its vae (9 and 4 channels" in refusal()


def test_a_number_in_the_place_of_a_tensor(folders: Path) -> None:
    """Shapes are asked for widths before they are compared with any."""
    for part, name in (("vae", "first_stage_model.encoder.down.0.block.0.conv2.weight"), ("unet", FIRST)):
        shutil.rmtree("one", ignore_errors=True)
        put(folders, "sd1", lambda tensors, name=name: tensors.update({name: torch.zeros(())}))
        Path(f"one/{part}/config.json").unlink()
        assert f"has a configuration that is not known here ({part}/config.json: " in refusal()


def test_damaged_files() -> None:
    FILE.write_bytes(b"\xff" * 100)
    assert "has damaged weights" in refusal()
    FILE.write_bytes(b"")
    assert "has damaged weights" in refusal()
