"""LoRAs of flow transformers: the names that files have for layers, pictures as diffusers draws them, and refusals."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import lora_conversion_utils as utils
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.errors import RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.files import find_file
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.lora_file import open_lora
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.single_file.flux_dit import flux_layers
from prefect_regional_diffusion.sampling_core.models.tensor_info import TensorInfo
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.flow_pipelines import Picture, flux_shift, simple, with_flow_pipeline
from tests.linked_models import link
from tests.original_flow_layouts import flux_dit, mmdit
from tests.reference_pipelines import share_alike
from tests.tiny_flow_models import tiny_sd3
from tests.tiny_loras import (
    ALPHA,
    FLOWS,
    KOHYA,
    RANK,
    TEXT,
    WEIGHTS,
    asked,
    lora_models,
    lora_of,
    merged,
    opened,
    save_lora,
    tiny_lora,
    used,
)

LAYOUTS = {"flux": flux_dit, "sd3": mmdit}
LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
RIGHT = {"x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = lora_models(tmp_path_factory.mktemp("models"), FLOWS)
    tiny_sd3(folder / "sd3.5", of_35=True)
    return folder


@pytest.fixture(autouse=True)
def models(made: Path, workdir: Path) -> None:
    """Links to the models and their LoRAs; nothing is loaded."""
    link(made, workdir)
    loaded_parts.cache_clear()


def assert_same_layers(one: LoraLayers, other: LoraLayers) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True))


@pytest.mark.parametrize("model", FLOWS)
def test_diffusers_and_kohya_s_names_are_the_same_layers(model: str) -> None:
    lora = tiny_lora(model, 7, ("transformer", *TEXT[model]))
    peft = lora.peft()
    numbered = KOHYA | {"text_encoder": "lora_te1"} | ({"text_encoder_2": "lora_te3"} if model == "flux" else {})
    spelled = {
        "onetrainer": lora.kohya(),
        "kohya": lora.kohya(numbered | {"transformer": "lora_unet"}),
        "peft": peft,
        "bare": {name.removeprefix("transformer."): tensor for name, tensor in peft.items()},
        "alone": {name.replace("transformer.", "base_model.model.", 1): tensor for name, tensor in peft.items()},
    }
    first, *others = [opened(model, save_lora(tensors, f"{name}.safetensors")) for name, tensors in spelled.items()]
    layers = {"denoiser": lora.layers["transformer"], "text_encoder": [lora.layers[name] for name in TEXT[model]]}
    assert first.layers("denoiser") == len(layers["denoiser"])
    assert [len(one) for one in first.text_encoder] == [len(one) for one in layers["text_encoder"]]
    for part in ("denoiser", "text_encoder"):
        for other in others:
            for one, same in zip(first.read(part), other.read(part), strict=True):
                assert_same_layers(one, same)


def first_names(folder: str, layout: str) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """A LoRA for the layers of a transformer as its first release has them, and its weights with that merged."""
    generator = torch.Generator().manual_seed(3)
    weights = LAYOUTS[layout](load_file(Path(folder) / "transformer" / WEIGHTS["transformer"]))
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for name, weight in sorted(weights.items()):
        if weight.ndim in (2, 4) and name.endswith(".weight"):
            down = torch.randn(RANK, *weight.shape[1:], generator=generator)
            up = torch.randn(len(weight), RANK, generator=generator)
            layers[name.removesuffix(".weight")] = (down, up)
            weights[name] = weight + (up @ down.flatten(1) * (ALPHA / RANK)).reshape(weight.shape)
    return layers, weights


@pytest.mark.parametrize("spelling", ["kohya", "comfyui"])
@pytest.mark.parametrize(("folder", "layout"), [("flux", "flux"), ("sd3", "sd3"), ("sd3.5", "sd3")])
def test_the_first_names_of_layers_are_divided_among_diffusers_layers(folder: str, layout: str, spelling: str) -> None:
    """Every layer, the fused ones and those that are turned: merged in either layout, the weights are the same."""
    layers, expected = first_names(folder, layout)
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in layers.items():
        file_name = f"diffusion_model.{name}" if spelling == "comfyui" else f"lora_unet_{name.replace('.', '_')}"
        kinds = ("lora_A", "lora_B") if spelling == "comfyui" else ("lora_down", "lora_up")
        wide_up = up.reshape(*up.shape, *[1] * (down.ndim - 2))
        tensors |= {f"{file_name}.{kinds[0]}.weight": down, f"{file_name}.{kinds[1]}.weight": wide_up}
        tensors[f"{file_name}.alpha"] = torch.tensor(ALPHA)
    lora = opened(folder, save_lora(tensors, "first.safetensors"))
    weights = load_file(Path(folder) / "transformer" / WEIGHTS["transformer"])
    for layer, (down, up) in lora.read("denoiser")[0].items():
        weight = weights[f"{layer}.weight"]
        weights[f"{layer}.weight"] = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    torch.testing.assert_close(LAYOUTS[layout](weights), expected)
    assert lora.layers("denoiser") > len(layers)


def test_kohya_s_names_of_flux_are_those_that_diffusers_knows(tmp_path: Path) -> None:
    """In the published width, which diffusers takes for granted; with a block of each kind."""
    with torch.device("meta"):
        network = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    weights = {name: TensorInfo("", name, tuple(one.shape), "F32") for name, one in network.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for name in {info.name for layer, info in flux_layers(weights).items() if layer in weights}:
        parts = [weights[layer] for layer, info in flux_layers(weights).items() if info.name == name]
        rows = sum(part.shape[0] for part in parts)
        flat = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{flat}.lora_down.weight"] = torch.randn(1, parts[0].shape[1], generator=generator)
        tensors[f"{flat}.lora_up.weight"] = torch.randn(rows, 1, generator=generator)
    file = Path(save_lora(tensors, tmp_path / "wide.safetensors"))
    (ours,) = open_lora(
        find_file("loras.0.file", file.name, str(file)), {"transformer": weights}, {}, flux_layers(weights)
    ).read("denoiser")
    theirs = {
        name.removeprefix("transformer."): tensor
        for name, tensor in utils._convert_kohya_flux_lora_to_diffusers(tensors).items()
    }
    assert {name.partition(".lora_")[0] for name in theirs} == ours.keys()
    for layer, (down, up) in ours.items():
        assert torch.equal(down, theirs[f"{layer}.lora_A.weight"])
        assert torch.equal(up, theirs[f"{layer}.lora_B.weight"])


def test_kohya_s_names_of_z_image_are_those_that_diffusers_knows() -> None:
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for block in ("layers_0", "layers_1", "noise_refiner_0", "context_refiner_0"):
        for layer, rows in (("qkv", 192), ("out", 64)):
            name = f"lora_unet_{block}_attention_{layer}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(RANK, 64, generator=generator)
            tensors[f"{name}.lora_up.weight"] = torch.randn(rows, RANK, generator=generator)
            tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    (ours,) = opened("z-image", save_lora(tensors, "first.safetensors")).read("denoiser")
    theirs = utils._convert_non_diffusers_z_image_lora_to_diffusers(dict(tensors))
    assert {name.removeprefix("transformer.").partition(".lora_")[0] for name in theirs} == ours.keys()
    assert len(ours) == 16
    for layer, (down, up) in ours.items():
        assert torch.equal(down, theirs[f"transformer.{layer}.lora_A.weight"])
        assert torch.equal(up, theirs[f"transformer.{layer}.lora_B.weight"])


def test_a_layer_of_z_image_in_which_rows_are_not_told_apart_is_refused() -> None:
    down, up = torch.ones(4, 64), torch.ones(64, 4)
    for name in ("transformer.all_x_embedder.2-1", "diffusion_model.x_embedder"):
        refused("tokens of all rows as one", "z-image", {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})


def job_of(model: str, **fields: Any) -> dict[str, Any]:
    """The canvas is no square, so that height and width are told apart."""
    return asked(model, prompt="A red Circle, on blue!", width=192, sampler="euler") | fields


def record_of(job: dict[str, Any], checkpoint_steps: int | None = None) -> dict[str, Any]:
    return asyncio.run(render.fn(parse_job(job), checkpoint_steps))


def drawn(job: dict[str, Any]) -> Picture:
    return picture_of(record_of(job))


def picture_of(record: dict[str, Any]) -> Picture:
    with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("model", FLOWS)
def test_it_draws_what_the_pipeline_draws_with_merged_weights(model: str, tmp_path: Path) -> None:
    """Denoiser and all text encoders, two files on one row."""
    job = job_of(model, loras=[used(model, "t", 0.6), used(model, "b", -0.5)])
    ours = drawn(job)
    both = (lora_of(Path(), model, "t"), 0.6), (lora_of(Path(), model, "b"), -0.5)
    whole = job | {"model": merged(model, tmp_path / "merged", *both)}
    sigmas = simple(4, flux_shift(192, 128), 10_000) if model == "flux" else simple(4, 3.0, 1000)
    # diffusers counts Z-Image's guidance from 0; the tiny one has positions for prompts of so many tokens.
    fields: dict[str, Any] = (
        {"guidance_scale": 3.0, "max_sequence_length": 96} if model == "z-image" else {"guidance_scale": 4.0}
    )
    assert share_alike(ours, with_flow_pipeline(whole, sigmas, **fields)) >= 0.999
    for loras in ([], job["loras"][:1], [job["loras"][0] | {"text_strength": 0.0}, job["loras"][1]]):
        assert share_alike(ours, drawn(job | {"loras": loras})) < 0.95, "the comparison would see a mistake"


@pytest.mark.parametrize("model", FLOWS)
def test_regions_have_loras_of_their_own_and_go_on_to_the_same_bits(model: str) -> None:
    a, b = used(model, "a", 0.8), used(model, "b", -0.5)
    regions = [
        {"prompt": "green leaves", "mask": LEFT, "loras": [a]},
        {"prompt": "green leaves", "mask": RIGHT, "loras": [a, b]},
    ]
    job = job_of(model, regions=regions)
    planned = prepare(parse_job(job)).cost
    rows = 3 if model == "flux" else 6
    assert (planned.forwards, planned.evaluations) == (4, 4 * rows), "one forward a step"
    whole = picture_of(record_of(job, 1))
    newest = max(Path(".regional/store/latents").glob("*/*.safetensors"), key=lambda state: state.stem)
    newest.unlink()
    again = record_of(job, 1)
    assert again["steps_computed"] > 0
    assert (picture_of(again) == whole).all()
    plain = drawn(job | {"regions": [region | {"loras": []} for region in regions]})
    assert np.abs(whole.astype(int) - plain)[:, :72].mean() > 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", FLOWS)
def test_narrow_text_encoders_read_with_it(model: str, dtype: torch.dtype) -> None:
    """Layers of T5 that overflow float16 stay float32."""
    encoder = open_folder(model).load_text_encoder(Placement(dtype=dtype))
    loras = [
        {name: type(layer)(layer.down.to(dtype), layer.up.to(dtype)) for name, layer in layers.items()}
        for layers in opened(model, f"{model}-t.safetensors").read("text_encoder")
    ]
    wide = open_folder(model).load_text_encoder(Placement())
    wide_loras = opened(model, f"{model}-t.safetensors").read("text_encoder")
    expected = wide.encode("some words", loras=wide_loras)
    for name in (name for name, tensor in expected.tensors.items() if tensor.is_floating_point()):
        bound = expected[name].norm()
        assert (encoder.encode("some words", loras=loras)[name] - expected[name]).norm() < 0.05 * bound
        assert (encoder.encode("some words")[name] - expected[name]).norm() > 0.1 * bound


def refused(message: str, model: str, tensors: dict[str, Tensor]) -> None:
    """By the name of the field, in one line, and before any weight is read."""
    save_lora(tensors, "wrong.safetensors")
    with pytest.raises(RegionalError) as error:
        asyncio.run(render.fn(parse_job(job_of(model, loras=[{"file": "wrong.safetensors"}]))))
    line = str(error.value)
    assert line.startswith("loras.0.file: ")
    assert message in line
    assert "\n" not in line
    assert not loaded_parts().keys


def test_what_is_no_lora_of_the_model_is_refused() -> None:
    refused("a DoRA", "flux", {"transformer.x_embedder.lora_magnitude_vector": torch.ones(4)})
    refused("a LoHa", "flux", {"lora_unet_double_blocks_0_img_attn_qkv.hada_w1_a": torch.ones(4, 4)})
    xlabs = {"double_blocks.0.processor.proj_lora1.down.weight": torch.ones(4, 32)}
    refused("that is none of a LoRA in kohya's or diffusers' names (double_blocks.0.processor", "flux", xlabs)
    refused("are none of this model's: ", "sd3", lora_of(Path(), "flux", "b").peft())
    refused("of a model of other sizes", "sd3", {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(4, 99),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(32, 4),
    })  # fmt: skip
    fused = "lora_unet_single_blocks_0_linear1"
    wrong = {f"{fused}.lora_down.weight": torch.ones(4, 32), f"{fused}.lora_up.weight": torch.ones(96, 4)}
    refused("[4, 32] and [96, 4] for a layer of [224, 32]", "flux", wrong)
    twice = {f"{fused}.lora_down.weight": torch.ones(4, 32), f"{fused}.lora_up.weight": torch.ones(224, 4)}
    part = "transformer.single_transformer_blocks.0.attn.to_k"
    twice |= {f"{part}.lora_A.weight": torch.ones(4, 32), f"{part}.lora_B.weight": torch.ones(32, 4)}
    refused("has a layer twice", "flux", twice)


def test_without_t5_a_lora_that_acts_on_it_is_refused() -> None:
    texts = lora_of(Path(), "sd3", "t").kohya()
    tiny_sd3(Path("short"), t5=False)
    refused("none of this model's: lora_te3_encoder_block_0", "short", texts)
    without = {name: tensor for name, tensor in texts.items() if not name.startswith("lora_te3_")}
    assert opened("short", save_lora(without, "clip.safetensors")).layers("text_encoder") > 0
