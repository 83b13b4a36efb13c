"""Files of ControlNets and T2I-Adapters as people have them: which are read, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.errors import RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import BadJob, parse_job
from prefect_regional_diffusion.sampling_core.models.control_file import ControlFile
from prefect_regional_diffusion.sampling_core.models.files import find_file, find_files
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from tests.tiny_controls import MODELS, control_models, tiny_adapter, tiny_controlnet, used
from tests.tiny_flow_models import tiny_flux, tiny_sd3, tiny_z_image
from tests.tiny_loras import asked
from tests.tiny_models import OTHER, tiny_sd

WEIGHTS = "diffusion_pytorch_model.safetensors"
LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return control_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def models(made: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the models and their controls; nothing is loaded."""
    shutil.copytree(made, workdir, dirs_exist_ok=True)
    loaded_parts.cache_clear()


def opened(model: str, name: str) -> ControlFile:
    """A file or folder compared with a model."""
    path = Path(name).resolve()
    files = find_files(name, path, os.path.realpath, "file") if path.is_dir() else find_file("file", name, str(path))
    return open_folder(model).open_control(files)


def tensors_of(control: ControlFile) -> dict[str, Tensor]:
    return control.load(Placement()).network.state_dict()


def assert_same_network(one: ControlFile, other: ControlFile) -> None:
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert one.configuration == other.configuration


@pytest.mark.parametrize("name", ["a", "t"])
@pytest.mark.parametrize("model", MODELS)
def test_a_file_without_its_folder_is_the_same(model: str, name: str) -> None:
    shutil.copy(f"{model}-{name}/{WEIGHTS}", "alone.safetensors")
    assert_same_network(opened(model, "alone.safetensors"), opened(model, f"{model}-{name}"))


@pytest.mark.parametrize(
    ("kind", "channels", "seen"),
    [("full_adapter", (32, 64, 64), 1), ("full_adapter", (32, 64, 64), 3), ("light_adapter", (32, 64), 3)],
)
def test_an_adapter_s_file_says_of_which_kind_it_is(kind: str, channels: tuple[int, ...], seen: int) -> None:
    tiny_sd(Path("sd1"), attends=(True, True, False))
    tiny_adapter("adapter", 5, kind, channels, in_channels=seen)
    shutil.copy(f"adapter/{WEIGHTS}", "alone.safetensors")
    assert_same_network(opened("sd1", "alone.safetensors"), opened("sd1", "adapter"))


def original_names(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The tensors of a ControlNet of three levels as its first release calls them, with the rule written out."""
    outside = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "controlnet_mid_block": "middle_block_out.0",
        "controlnet_cond_embedding.conv_in": "input_hint_block.0",
        "controlnet_cond_embedding.conv_out": "input_hint_block.14",
    }
    outside |= {f"controlnet_cond_embedding.blocks.{i}": f"input_hint_block.{2 * i + 2}" for i in range(6)}
    for level in range(3):
        first = 1 + level * (layers + 1)
        for layer in range(layers):
            outside[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{first + layer}.0"
            outside[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{first + layer}.1"
        outside[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{first + layers}.0.op"
    outside |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(3 * (layers + 1))}
    inside = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = next(place for place in outside if name.startswith(f"{place}."))
        rest = name[len(place) + 1 :]
        if ".resnets." in name:
            layer, _, end = rest.partition(".")
            rest = f"{inside[layer]}.{end}"
        found[f"control_model.{outside[place]}.{rest}"] = tensor
    return found


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_names_of_the_first_release_are_read(model: str, layers: int) -> None:
    if layers == 2:
        tiny_sd(Path("deep"), sizes=OTHER)
        tiny_controlnet("deep", "deep-a", 1)
        model = "deep"
    save_file(original_names(load_file(f"{model}-a/{WEIGHTS}"), layers), "original.safetensors")
    assert_same_network(opened(model, "original.safetensors"), opened(model, f"{model}-a"))


def test_half_precision_alone_is_read() -> None:
    halves = {name: tensor.half() for name, tensor in load_file(f"sd-a/{WEIGHTS}").items()}
    save_file(halves, "sd-a/diffusion_pytorch_model.fp16.safetensors")
    Path("sd-a", WEIGHTS).unlink()
    found = tensors_of(opened("sd", "sd-a"))
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in halves.items())


def test_the_content_is_what_it_is_known_by() -> None:
    before = opened("sd", "sd-a").fingerprint()
    assert before != opened("sd", "sd-b").fingerprint()
    config = Path("sd-a/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"controlnet_conditioning_channel_order": "bgr"}))
    assert opened("sd", "sd-a").fingerprint() != before


def test_a_file_is_another_network_for_a_model_of_another_kind() -> None:
    """What a file does not say is the model's: with other numbers there, the same tensors answer otherwise."""
    shutil.copy(f"sd-a/{WEIGHTS}", "alone.safetensors")
    before = opened("sd", "alone.safetensors").fingerprint()
    config = Path("sd/unet/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"norm_eps": 1e-6}))
    assert opened("sd", "alone.safetensors").fingerprint() != before


def refused(told: str, control: Mapping[str, Any], model: str = "sd", **fields: Any) -> None:
    """By the name of the field, in one line, and before any weight is read."""
    region = {"prompt": "leaves", "mask": LEFT, "controls": [control]}
    with pytest.raises(RegionalError) as error:
        asyncio.run(render.fn(parse_job(asked(model, regions=[region], **fields))))
    line = str(error.value)
    assert told in line
    assert "\n" not in line
    assert line.startswith(("regions.0.controls.0", "width", "height"))
    assert not loaded_parts().keys


def configured(folder: str, **fields: Any) -> Mapping[str, Any]:
    """A control whose folder has other values in its configuration."""
    config = Path(folder, "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    return {"file": folder, "image": "1.png"}


def test_a_control_for_another_model_is_refused() -> None:
    refused("is a ControlNet for another model (cross_attention_dim 80, not 32)", used("xl", "a"))
    refused("is a ControlNet for another model (cross_attention_dim 32, not 80)", used("sd", "a"), "xl")
    tiny_adapter("wide", 1, "full_adapter_xl", (32, 64, 96, 96))
    refused("is a T2I-Adapter for another model (maps of 32x1/16", {"file": "wide", "image": "1.png"})
    tiny_adapter("first", 1, "full_adapter", (32, 64, 64))
    refused("is a T2I-Adapter for another model (maps of 32x1/8", {"file": "first", "image": "1.png"})
    shutil.copy(f"xl-a/{WEIGHTS}", "alone.safetensors")
    refused("alone.safetensors has ", {"file": "alone.safetensors", "image": "1.png"})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"_class_name": "ControlNetUnionModel"}, "is a 'ControlNetUnionModel', and neither a ControlNetModel nor"),
        ({"global_pool_conditions": True}, "'global_pool_conditions' is True, and may only be false"),
        ({"conditioning_channels": 1}, "'conditioning_channels' is 1, and may only be 3"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"trick": "new"}, "is no key that a ControlNetModel is known to have"),
        ({"conditioning_embedding_out_channels": [8, 16]}, "2 pixels for a latent cell, not 8"),
        ({"layers_per_block": 2}, "layers_per_block 2, not 1"),
    ],
)
def test_a_configuration_that_is_not_known_is_refused(fields: dict[str, Any], told: str) -> None:
    refused(told, configured("sd-a", **fields))


def test_missing_and_unknown_tensors_are_refused_before_the_model_is_read() -> None:
    weights = load_file(f"sd-a/{WEIGHTS}")
    save_file(weights | {"left.over": torch.ones(1)}, f"sd-a/{WEIGHTS}")
    refused("has weights without a place in its ControlNet ('left.over' and 0 more)", used("sd", "a"))
    del weights["time_embedding.linear_1.bias"]
    save_file(weights, f"sd-a/{WEIGHTS}")
    refused("has incomplete weights (ControlNet lacks time_embedding.linear_1.bias", used("sd", "a"))


@pytest.mark.parametrize("make", [tiny_sd3, tiny_flux, tiny_z_image])
def test_a_family_without_controls_refuses_them_by_name(make: Callable[[Path], str]) -> None:
    refused("takes no ControlNet and no T2I-Adapter", used("sd", "a"), model=make(Path("flow")))


def test_what_is_no_safetensors_file_is_never_read() -> None:
    torch.save({"control": torch.ones(2)}, "net.pth")
    refused("is no .safetensors file (pickled weights are never read)", {"file": "net.pth", "image": "1.png"})
    Path("net.pth").rename("net.safetensors")
    refused("has damaged weights", {"file": "net.safetensors", "image": "1.png"})
    refused("does not exist", {"file": "missing", "image": "1.png"})
    Path("empty").mkdir()
    refused("has no config.json", {"file": "empty", "image": "1.png"})
    Path("sd-a", WEIGHTS).rename("sd-a/diffusion_pytorch_model.bin")
    refused("has no weights of the variant fp16", used("sd", "a"))
    save_file({"some.tensor": torch.ones(1)}, "other.safetensors")
    refused("is neither a ControlNet nor a T2I-Adapter", {"file": "other.safetensors", "image": "1.png"})


def test_a_canvas_that_an_adapter_has_no_maps_for_is_refused() -> None:
    refused("allowed: a multiple of 16, for regions.0.controls.0", used("sd", "t"), width=136)


def test_a_window_without_a_step_is_refused() -> None:
    refused(
        "regions.0.controls.0.end: 0.6 is not allowed; allowed: at least one step more",
        used("sd", "a", start=0.4, end=0.6),
    )


def test_an_image_that_is_missing_is_named() -> None:
    refused("regions.0.controls.0.image: none.png does not exist", used("sd", "a", "none.png"))


def test_a_server_s_jobs_name_controls_under_its_roots(tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "net"
    shutil.copytree("sd-a", outside)
    refused("under REGIONAL_ASSET_ROOTS", {"file": str(outside), "image": "1.png"})
    Path("link").symlink_to(outside)
    refused("under REGIONAL_ASSET_ROOTS", {"file": "link", "image": "1.png"})
    Path("sd-a", WEIGHTS).unlink()
    Path("sd-a", WEIGHTS).symlink_to(outside / WEIGHTS)
    refused("under REGIONAL_ASSET_ROOTS", used("sd", "a"))
    shutil.copy("1.png", outside / "1.png")
    refused("under REGIONAL_ASSET_ROOTS", used("sd", "b", str(outside / "1.png")))


def test_a_control_that_changed_since_it_was_planned_is_not_read() -> None:
    control = opened("sd", "sd-a")
    tiny_controlnet("sd", "sd-a", 9)
    with pytest.raises(RegionalError, match="changed while it was read"):
        control.load(Placement())


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"controls": [used("sd", "a")] * 5}, "controls"),
        ({"controls": [used("sd", "a", start=0.5, end=0.5)]}, r"controls\.0\.end: 0\.5 .*more than start"),
        ({"controls": [used("sd", "a", place="region")]}, r"controls\.0\.place: 'region' .*a region's own controls"),
        ({"controls": [used("sd", "a", strength=-1)]}, r"controls\.0\.strength"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(BadJob, match=told):
        parse_job(asked(**fields))
