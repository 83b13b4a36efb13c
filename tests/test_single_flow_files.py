"""Single files of Stable Diffusion 3 and FLUX.1 are the folders that they were written from, the network unplugged."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.family import Canvas
from prefect_regional_diffusion.sampling_core.models.folder import open_checkpoint
from tests.original_flow_layouts import DIFFUSION, beside, original_flow, save
from tests.original_layouts import Tensors
from tests.published_models import flux_as_published, sd3_as_published
from tests.test_flow_families import drawn
from tests.test_single_files import assert_alike, networks, no_network, nothing_loaded
from tests.tiny_flow_models import OTHER, SMALL, FlowSizes, tiny_flux, tiny_sd3

__all__ = ["no_network", "nothing_loaded"]

FILE = Path("one.safetensors")
KINDS: dict[str, Callable[[Path, int, FlowSizes], str]] = {
    "sd3": tiny_sd3,
    "sd3 without T5": lambda *of: tiny_sd3(*of, t5=False),
    "sd3.5": lambda *of: tiny_sd3(*of, of_35=True),
    "flux dev": tiny_flux,
    "flux schnell": lambda *of: tiny_flux(*of, schnell=True),
}
JOB = {"prompt": "A red Circle, on blue!", "width": 192, "height": 128, "seed": 3, "steps": 2}


def tensors_of(kind: str, seed: int = 0, sizes: FlowSizes = SMALL) -> Tensors:
    """A new folder `folder` of a kind, as the tensors of one file."""
    KINDS[kind](Path("folder"), seed, sizes)
    return original_flow(Path("folder"), kind.split()[0].removesuffix(".5"))


def put(tensors: Tensors) -> None:
    """The file, with the folder's configurations beside it."""
    save(tensors, FILE)
    if not FILE.with_suffix("").exists():
        beside(Path("folder"), FILE)


def refusal() -> str:
    """The line that opening the file, or checking its network, ends with."""
    with pytest.raises(ModelError) as refused:
        open_checkpoint(str(FILE)).check_weights("denoiser")
    line = str(refused.value)
    assert "\n" not in line
    return line


def assert_same_pictures() -> None:
    assert np.array_equal(drawn(JOB | {"model": str(FILE)}), drawn(JOB | {"model": "folder"}))


@pytest.mark.parametrize(("seed", "sizes"), [(0, SMALL), (1, OTHER)], ids=["small", "other"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_its_folder(kind: str, seed: int, sizes: FlowSizes) -> None:
    put(tensors_of(kind, seed, sizes))
    assert_alike(str(FILE), "folder")
    assert open_checkpoint(str(FILE)).facts == open_checkpoint("folder").facts
    assert_same_pictures()


@pytest.mark.parametrize("kind", ["sd3", "sd3.5"])
def test_the_names_of_stable_diffusion_3_are_those_that_diffusers_own_converter_gives(kind: str) -> None:
    tensors = tensors_of(kind)
    put(tensors)
    ours = networks(str(FILE))["transformer"].state_dict()
    network = {name: tensor for name, tensor in tensors.items() if name.startswith(DIFFUSION)}
    theirs = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(network)
    assert set(ours) == set(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("kind", ["sd3", "sd3.5"])
def test_stable_diffusion_3_needs_nothing_beside_it_if_it_is_built_as_published(kind: str) -> None:
    sd3_as_published(Path("folder"), of_35=kind == "sd3.5")
    save(original_flow(Path("folder"), "sd3"), FILE)
    assert_alike(str(FILE), "folder")
    assert open_checkpoint(str(FILE)).facts == open_checkpoint("folder").facts
    assert_same_pictures()


@pytest.mark.parametrize("schnell", [False, True], ids=["dev", "schnell"])
def test_flux_needs_t5s_tokenizer_beside_it_if_it_is_built_as_published(schnell: bool) -> None:
    flux_as_published(Path("folder"), schnell=schnell)
    save(original_flow(Path("folder"), "flux"), FILE)
    with pytest.raises(ModelError, match=r"has no one/tokenizer_2/tokenizer.json beside it: T5's tokenizer"):
        open_checkpoint(str(FILE))
    Path("one/tokenizer_2").mkdir(parents=True)
    shutil.copy("folder/tokenizer_2/tokenizer.json", "one/tokenizer_2")
    assert_alike(str(FILE), "folder")
    ours, theirs = open_checkpoint(str(FILE)), open_checkpoint("folder")
    assert ours.facts == theirs.facts
    canvas = Canvas(192, 128)
    assert ours.noise_schedule(canvas, 4).sigmas == theirs.noise_schedule(canvas, 4).sigmas
    assert_same_pictures()


def test_stable_diffusion_3_with_t5_needs_its_tokenizer_beside_it() -> None:
    put(tensors_of("sd3"))
    shutil.rmtree("one/tokenizer_3")
    with pytest.raises(ModelError, match=r"has no one/tokenizer_3/tokenizer.json beside it: T5's tokenizer"):
        open_checkpoint(str(FILE))


@pytest.mark.parametrize("kind", ["sd3", "flux dev"])
def test_other_ways_to_write_the_same_file(kind: str) -> None:
    """Without a prefix of the network, with `vae.` as FLUX's files in ComfyUI, and with one name of T5's embeddings."""
    tensors = tensors_of(kind)
    shared = "text_encoders.t5xxl.transformer.shared.weight"
    put(
        {
            name.removeprefix(DIFFUSION).replace("first_stage_model.", "vae."): tensor
            for name, tensor in tensors.items()
            if name != shared
        }
    )
    assert_alike(str(FILE), "folder")


def test_a_projection_that_a_file_leaves_out_changes_nothing() -> None:
    tensors = tensors_of("sd3 without T5")
    projection = "text_encoders.clip_l.transformer.text_projection.weight"
    put(tensors)
    width = 32
    configuration = Path("one/text_encoder/config.json")
    configuration.write_text(configuration.read_text().replace('"projection_dim": 40', f'"projection_dim": {width}'))
    tensors.pop(projection)
    pooled = f"{DIFFUSION}y_embedder.mlp.0.weight"
    tensors[pooled] = tensors[pooled][:, :88].clone()
    transformer = Path("one/transformer/config.json")
    transformer.write_text(
        transformer.read_text().replace('"pooled_projection_dim": 96', '"pooled_projection_dim": 88')
    )
    put(tensors)
    assert torch.equal(networks(str(FILE))["text_encoder"].text_projection.weight, torch.eye(width))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_8_bits_are_the_same_numbers(dtype: torch.dtype) -> None:
    tensors = tensors_of("flux dev")
    narrow = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    put(narrow)
    found = networks(str(FILE))
    put({name: tensor.float() for name, tensor in narrow.items()})
    wide = networks(str(FILE))
    for folder, network in found.items():
        tensors = wide[folder].state_dict()
        # Matrices stay narrow in memory; their layers widen them while they are at work.
        assert all(torch.equal(tensor.float(), tensors[name]) for name, tensor in network.state_dict().items())


def test_weights_that_were_divided_to_fit_8_bits_are_multiplied() -> None:
    tensors = tensors_of("flux dev")
    scaled, wide = dict(tensors), dict(tensors)
    for name in [name for name, tensor in tensors.items() if name.startswith(DIFFUSION) and tensor.ndim == 2]:
        layer = name.removesuffix(".weight")
        scale = tensors[name].abs().max() / 448
        scaled[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        wide[name] = scaled[name].float() * scale
        scaled |= {f"{layer}.scale_weight": scale, f"{layer}.scale_input": torch.ones(1)}
    assert len(scaled) > len(tensors)
    scaled[f"{DIFFUSION}scaled_fp8"] = torch.empty(2).to(torch.float8_e4m3fn)
    put(scaled)
    found = networks(str(FILE))["transformer"].state_dict()
    put(wide)
    expected = networks(str(FILE))["transformer"].state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        (
            "img_in.scale_weight",
            torch.ones(2),
            r"has a scale that is not one number \('.*img_in.scale_weight' is \[2\]",
        ),
        ("other.scale_weight", torch.ones(()), r"has a scale of a tensor that is not there \('.*other.scale_weight'"),
        ("img_in.weight_scale", torch.ones(()), r"in a format of few bits that is not read here"),
        ("img_in.weight.absmax", torch.ones(4), r"in a format of few bits that is not read here"),
        ("distilled_guidance_layer.in_proj.weight", torch.ones(4), r"is a model of another family"),
        ("double_blocks.0.img_attn.extra.weight", torch.ones(4), r"without a place in its transformer"),
        ("single_blocks.0.linear1.weight", torch.ones(100, 32), r"single_transformer_blocks.0.proj_mlp.weight is \[4,"),
        ("double_blocks.0.img_attn.qkv.weight", torch.ones(97, 32), r"transformer_blocks.0.attn.to_v.weight is \[33,"),
        ("img_in.weight", torch.ones(32, 96), r"other sizes than transformer/config.json says \(x_embedder.weight"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name: str, tensor: torch.Tensor, told: str) -> None:
    put(tensors_of("flux dev") | {DIFFUSION + name: tensor})
    assert re.search(told, refusal())


@pytest.mark.parametrize(
    ("kind", "prefix", "told"),
    [
        ("sd3", "text_encoders.clip_l", "lacks a text encoder: it is a Stable Diffusion 3 file without text_encoders"),
        ("sd3", "text_encoders.clip_g", "lacks a second text encoder"),
        ("sd3", "first_stage_model.", "lacks an autoencoder"),
        ("sd3", f"{DIFFUSION}x_embedder", "lacks a denoiser"),
        ("flux dev", "text_encoders.t5xxl", "lacks T5's encoder: it is a FLUX.1 file without text_encoders.t5xxl"),
        ("flux dev", f"{DIFFUSION}img_in", "lacks a denoiser"),
        ("flux schnell", f"{DIFFUSION}double_blocks.1.img_mod.lin.bias", "transformer_blocks.1.norm1.linear.bias"),
        ("sd3.5", f"{DIFFUSION}joint_blocks.0.x_block.attn2.proj.bias", "transformer_blocks.0.attn2.to_out.0.bias"),
    ],
)
def test_what_is_missing_is_named(kind: str, prefix: str, told: str) -> None:
    put({name: tensor for name, tensor in tensors_of(kind).items() if not name.startswith(prefix)})
    line = refusal()
    assert "lacks" in line
    assert told in line


def test_a_network_for_other_inputs_is_refused() -> None:
    """As FLUX.1 Fill, whose network is told of the picture around the hole; only its shapes say so."""
    put(tensors_of("flux dev") | {f"{DIFFUSION}img_in.weight": torch.zeros(32, 384)})
    configuration = Path("one/transformer/config.json")
    configuration.write_text(configuration.read_text().replace('"in_channels": 64', '"in_channels": 384'))
    with pytest.raises(
        ModelError, match=r"has parts that differ in their channels of a token .4 x vae 64, transformer"
    ):
        open_checkpoint(str(FILE))
