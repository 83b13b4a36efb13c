"""Files of IP-Adapters and image encoders as people have them, and what is refused before anything is loaded."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.errors import BadInput, RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import BadJob, parse_job
from prefect_regional_diffusion.sampling_core.models.files import find_file
from prefect_regional_diffusion.sampling_core.models.folder import open_checkpoint
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.linked_models import link
from tests.original_layouts import written
from tests.tiny_flow_models import tiny_flux, tiny_sd3, tiny_z_image
from tests.tiny_ip_adapters import (
    OTHER,
    PLAIN,
    PLUS,
    SMALL,
    flux_adapter,
    image_prompt_files,
    save_adapter,
    tiny_image_encoder,
)
from tests.tiny_loras import save_lora, tiny_lora
from tests.tiny_models import SMALL as SMALL_MODEL
from tests.tiny_models import tiny_sd, tiny_sdxl

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
ONE_FILE = ("one.safetensors", "sd")
ENCODER_WEIGHTS = "image_encoder/model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_sd(folder / "sd")
    return image_prompt_files(folder, folder / "sd")


@pytest.fixture(autouse=True)
def placed(made: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to a model, its IP-Adapters, an image encoder and pictures; nothing is loaded."""
    link(made, workdir)
    loaded_parts.cache_clear()


def asked(model: str = "sd", **prompt: Any) -> dict[str, Any]:
    """A job with an image prompt in a region."""
    own = {"file": PLAIN, "image": "red.png"} | prompt
    region = {"prompt": "leaves", "mask": LEFT, "image_prompts": [own]}
    return {"model": model, "prompt": "x", "width": 128, "height": 128, "steps": 2, "regions": [region]}


def refused(told: str, field: str = "file", model: str = "sd", **prompt: Any) -> None:
    """By the name of the field, and before any weight is read."""
    with pytest.raises(RegionalError) as error:
        asyncio.run(render.fn(parse_job(asked(model, **prompt))))
    line = str(error.value)
    assert line.startswith(f"regions.0.image_prompts.0.{field}: ")
    assert told in line
    assert "\n" not in line
    assert not loaded_parts().keys


def damaged(name: str) -> dict[str, Tensor]:
    tensors = load_file(PLAIN)
    match name:
        case "full face":
            return {"image_proj.proj.0.weight": torch.ones(4, 4), "image_proj.proj.3.weight": torch.ones(4)}
        case "face id":
            return {"image_proj.proj.0.weight": torch.ones(4, 4), "image_proj.norm.weight": torch.ones(4)}
        case "face id plus":
            return {"image_proj.perceiver_resampler.proj_in.weight": torch.ones(4, 4)}
        case "no adapter":
            return {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4)}
        case "its loras":
            return tensors | {"ip_adapter.1.to_k_lora.down.weight": torch.ones(4, 4)}
        case "empty":
            return {}
        case "no projection":
            return {name: one for name, one in tensors.items() if not name.startswith("image_proj.")}
        case "half":
            return {name: one for name, one in tensors.items() if name != "ip_adapter.3.to_v_ip.weight"}
        case "fewer layers":
            return {name: one for name, one in tensors.items() if not name.startswith("ip_adapter.3.")}
        case "width":
            return tensors | {"ip_adapter.3.to_v_ip.weight": torch.ones(48, 32)}
        case "rows":
            return tensors | {"image_proj.proj.weight": torch.ones(100, SMALL.projection)}
        case "bias":
            return tensors | {"ip_adapter.3.to_v_ip.bias": torch.ones(64)}
        case "integers":
            return tensors | {"image_proj.norm.bias": torch.ones(32, dtype=torch.int8)}
        case "heads":
            return load_file(PLUS) | {"image_proj.layers.0.0.to_q.weight": torch.ones(70, 96)}
        case "resampler":
            return {name: one for name, one in load_file(PLUS).items() if "layers.2.1.3" not in name}
        case _:
            raise ValueError(name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("full face", "is an IP-Adapter of a kind that is not read here (Full Face)"),
        ("face id", "is an IP-Adapter of a kind that is not read here (FaceID)"),
        ("face id plus", "is an IP-Adapter of a kind that is not read here (FaceID Plus)"),
        ("no adapter", "has a tensor that is none of an IP-Adapter's (model.diffusion_model"),
        ("its loras", "has a tensor that is none of an IP-Adapter's (ip_adapter.1.to_k_lora"),
        ("empty", "has no tensors"),
        ("no projection", "its projection has no matrix proj.weight"),
        ("half", "is an incomplete IP-Adapter"),
        ("fewer layers", "is an IP-Adapter of another model (it acts on"),
        ("width", "ip_adapter.3.to_v_ip.weight is [48, 32], not [64, 32]"),
        ("rows", "proj.weight has 100 rows, and this model's tokens have 32 features"),
        ("bias", "has a tensor that is none of an IP-Adapter's (ip_adapter.3.to_v_ip.bias)"),
        ("integers", "is I8"),
        ("heads", "is an IP-Adapter Plus of sizes that are not known here"),
        ("resampler", "has no projection.layers.2.1.3.weight"),
    ],
)
def test_what_is_no_adapter_of_the_model_is_refused_in_one_line(name: str, told: str) -> None:
    save_adapter(damaged(name), "wrong.safetensors")
    refused(told, file="wrong.safetensors")


def test_an_adapter_of_another_family_is_refused() -> None:
    refused("it acts on 7 layers, which are not the 11 of this model", model=tiny_sdxl(Path("xl")))
    wide = tiny_sd(Path("wide"), sizes=SMALL_MODEL._replace(text=(64, 48)))
    refused("is an IP-Adapter of a model of other sizes", model=wide)
    flux = tiny_flux(Path("flux"))
    refused("is an IP-Adapter of another model", model=flux)
    save_adapter(flux_adapter(flux), "flux.safetensors")
    refused("is an IP-Adapter of another model", file="flux.safetensors")
    plus = {name: one for name, one in load_file("flux.safetensors").items() if name.startswith("ip_adapter.")}
    plus |= {name: one for name, one in load_file(PLUS).items() if name.startswith("image_proj.")}
    save_adapter(plus, "plus of flux.safetensors")
    refused("is an IP-Adapter Plus, which this model does not take", file="plus of flux.safetensors", model=flux)
    save_lora(tiny_lora("sd", 1).kohya(), "lora.safetensors")
    refused("has a tensor that is none of an IP-Adapter's (lora_unet", file="lora.safetensors")


def test_a_model_in_one_file_has_the_layers_of_its_folder() -> None:
    written(Path("sd"), Path("one.safetensors"), "sd1")
    place = str(Path(PLAIN).resolve())
    own, folder = (open_checkpoint(model).open_ip_adapter(find_file("file", PLAIN, place)) for model in ONE_FILE)
    assert own.plan == folder.plan
    assert len(own.plan.layers) == 7


@pytest.mark.parametrize("make", [tiny_sd3, tiny_z_image])
def test_a_family_without_image_prompts_refuses_them_by_name(make: Callable[[Path], str]) -> None:
    refused("takes no image prompts", model=make(Path("flow")))


def test_what_is_no_safetensors_file_is_never_read() -> None:
    torch.save({"image_proj": torch.ones(2)}, "adapter.bin")
    refused("is no .safetensors file (pickled weights are never read)", file="adapter.bin")
    Path("adapter.bin").rename("pickle.safetensors")
    refused("has damaged weights", file="pickle.safetensors")
    refused("does not exist", file="missing.safetensors")
    shutil.copytree("image_encoder", "pickled")
    Path("pickled/model.safetensors").rename("pickled/pytorch_model.bin")
    refused("has no weights for its image_encoder", "image_encoder", image_encoder="pickled")


def configured(folder: str, **changes: Any) -> str:
    """A copy of the image encoder with other values in its configuration."""
    shutil.copytree("image_encoder", folder)
    file = Path(folder, "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_an_image_encoder_that_does_not_fit_is_refused() -> None:
    other = tiny_image_encoder(Path("other"), sizes=OTHER)
    refused("reads 24 projected features, and its image encoder has 40", image_encoder=other)
    refused("reads 32 features of a patch, and its image encoder has 48", image_encoder=other, file=PLUS)
    refused("does not exist", "image_encoder", image_encoder="nowhere")
    refused("is a file, not a folder", "image_encoder", image_encoder="red.png")
    refused("has no image_encoder/config.json", "image_encoder", image_encoder="sd")
    found = {"model_type": "siglip_vision_model", "num_channels": 4, "patch_size": 16, "hidden_act": "exec"}
    for key, value in found.items():
        changed = configured(f"changed {key}", **{key: value})
        refused(key if key != "patch_size" else "other sizes", "image_encoder", image_encoder=changed)
    Path("image_encoder").rename("elsewhere")
    refused("does not exist", "image_encoder")


def test_an_image_encoder_without_all_its_tensors_is_refused_before_others_are_read() -> None:
    tensors = load_file(ENCODER_WEIGHTS)
    for name, told in (("vision_model.pre_layrnorm.weight", "lacks vision_model.pre_layrnorm.weight"), ("", "a place")):
        less = {one: tensor for one, tensor in tensors.items() if one != name} if name else tensors
        more = {} if name else {"vision_model.more": torch.ones(1)}
        save_file(less | more, ENCODER_WEIGHTS, {"format": "pt"})
        refused(told, "image_encoder")


def test_a_server_s_jobs_name_files_under_its_roots(tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    shutil.copy(PLAIN, outside / PLAIN)
    shutil.copytree("image_encoder", outside / "image_encoder")
    refused("under REGIONAL_ASSET_ROOTS", file=str(outside / PLAIN))
    refused("under REGIONAL_ASSET_ROOTS", "image_encoder", image_encoder=str(outside / "image_encoder"))
    refused("under REGIONAL_ASSET_ROOTS", "image", image=str(outside / "red.png"))
    Path(ENCODER_WEIGHTS).unlink()
    Path(ENCODER_WEIGHTS).symlink_to(outside / ENCODER_WEIGHTS)
    refused("under REGIONAL_ASSET_ROOTS", "image_encoder")


def test_numbers_without_end_are_refused() -> None:
    tensors = load_file(PLAIN)
    tensors["ip_adapter.1.to_k_ip.weight"][0, 0] = float("inf")
    save_adapter(tensors, "inf.safetensors")
    with pytest.raises(RegionalError, match=r"^regions\.0\.image_prompts\.0\.file: .*that are not finite"):
        asyncio.run(render.fn(parse_job(asked(file="inf.safetensors"))))


def test_an_adapter_that_changed_since_it_was_planned_is_not_read() -> None:
    prepared = prepare(parse_job(asked()))
    (adapter,) = prepared.inputs.image_prompts.files.adapters.values()
    save_adapter({name: 2 * one for name, one in load_file(PLAIN).items()}, PLAIN)
    with pytest.raises(RegionalError, match="changed while it was read"):
        adapter.load(Placement())


def test_a_job_says_what_is_added() -> None:
    assert prepare(parse_job(asked())).image_prompts() == [f"{PLAIN} makes 4 tokens of an image, for 7 layers"]


def test_image_prompts_may_take_so_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    job = parse_job(asked())
    monkeypatch.setenv("REGIONAL_MAX_TENSOR_BYTES", "60000")
    prepare(job)
    settings.cache_clear()
    own = job.regions[0].image_prompts
    assert own is not None
    more = [prompt.model_copy(update={"image": f"{i}.png"}) for i, prompt in enumerate(own * 8)]
    for prompt in more:
        shutil.copy("red.png", prompt.image)
        with Path(prompt.image).open("ab") as file:
            file.write(prompt.image.encode())
    regions = [job.regions[0].model_copy(update={"image_prompts": tuple(more)})]
    with pytest.raises(BadInput, match="image prompts, REGIONAL_MAX_TENSOR_BYTES"):
        prepare(job.model_copy(update={"regions": tuple(regions)}))


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ({"strength": 11}, "strength"),
        ({"start": 1}, "start"),
        ({"end": 0}, "end"),
        ({"image": ""}, "image"),
        ({"scale": 1.0}, "strength .did you mean this"),
    ],
)
def test_a_job_s_fields_have_bounds(prompt: Mapping[str, Any], told: str) -> None:
    with pytest.raises(BadJob, match=rf"regions\.0\.image_prompts\.0.*{told}"):
        parse_job(asked(**prompt))


def test_a_job_has_at_most_eight() -> None:
    with pytest.raises(BadJob, match="image_prompts"):
        parse_job({"prompt": "x", "image_prompts": [{"file": PLAIN, "image": "red.png"}] * 9})
