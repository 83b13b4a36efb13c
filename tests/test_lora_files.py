"""Files of LoRAs as people have them: whose names are known, and what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as utils
from safetensors.torch import load_file
from torch import Tensor

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.errors import RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import BadJob, parse_job
from prefect_regional_diffusion.sampling_core.models.families.stable_diffusion import StableDiffusion
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.lora_names import layer_names
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from tests.linked_models import link
from tests.tiny_loras import (
    KOHYA,
    RANK,
    UNETS,
    WEIGHTS,
    asked,
    lora_models,
    opened,
    save_lora,
    tiny_lora,
    used,
)
from tests.tiny_models import OTHER, SMALL, Sizes, tiny_sdxl

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_models(tmp_path_factory.mktemp("models"), UNETS)


@pytest.fixture(autouse=True)
def models(made: Path, workdir: Path) -> None:
    """Links to the models and their LoRAs; nothing is loaded."""
    link(made, workdir)
    loaded_parts.cache_clear()


def test_all_names_are_the_same_layers() -> None:
    lora = tiny_lora("xl", 7, ("unet", "text_encoder", "text_encoder_2"))
    spelled = {
        "kohya": lora.kohya(),
        "te1": lora.kohya(KOHYA | {"text_encoder": "lora_te1"}),
        "peft": lora.peft(),
        "older": {
            name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): tensor
            for name, tensor in lora.peft().items()
        },
    }
    first, *others = [opened("xl", save_lora(tensors, f"{name}.safetensors")) for name, tensors in spelled.items()]
    for part in ("denoiser", "text_encoder"):
        wanted = first.read(part)
        assert sum(map(len, wanted)) == first.layers(part) > 10
        for other in others:
            for own, layers in zip(wanted, other.read(part), strict=True):
                assert own.keys() == layers.keys()
                assert all(torch.equal(a, b) for name in own for a, b in zip(own[name], layers[name], strict=True))


@pytest.mark.parametrize("sizes", [SMALL, OTHER], ids=["small", "other"])
def test_the_first_names_of_sdxl_are_those_that_diffusers_knows(sizes: Sizes, tmp_path: Path) -> None:
    weights = load_file(Path(tiny_sdxl(tmp_path / "model", sizes=sizes)) / "unet" / WEIGHTS["unet"])
    layers = [name.removesuffix(".weight") for name, weight in weights.items() if weight.ndim in (2, 4)]
    names = [name for name in layer_names("unet", layers, {}) if "put_blocks" in name or "middle_block" in name]
    asked = {f"{name}.lora_down.weight": name for name in names}
    assert len(asked) == len([layer for layer in layers if "blocks" in layer or "mid" in layer]) + 1
    found = _convert_non_diffusers_lora_to_diffusers_names(asked, sizes.layers)
    assert found == {layer for layer in layers if "blocks" in layer or "mid_block" in layer} | {"conv_in"}


def _convert_non_diffusers_lora_to_diffusers_names(asked: Mapping[str, str], layers: int) -> set[str]:
    """The layers that diffusers takes names of files for."""
    blocks = utils._maybe_map_sgm_blocks_to_diffusers(dict(asked), SimpleNamespace(layers_per_block=layers))
    found = [utils._convert_unet_lora_key(key) for key in blocks]
    plain = [re.sub(r"\.processor\.(to_[qkv]|to_out)_lora.*", r".\1", name) for name in found]
    plain = [re.sub(r"\.to_out$", ".to_out.0", name) for name in plain]
    return {name.removesuffix(".lora.down.weight").removesuffix(".lora_down.weight") for name in plain}


def test_alpha_of_peft_s_configuration_counts() -> None:
    lora = tiny_lora("sd", 1)
    told = json.dumps({"unet.lora_alpha": 2, "unet.r": RANK, "unet.alpha_pattern": {}, "unet.use_rslora": False})
    plain = opened("sd", "sd-a.safetensors").read("denoiser")[0]
    quiet = opened("sd", save_lora(lora.peft(), "alpha.safetensors", {"lora_adapter_metadata": told}))
    for name, layer in quiet.read("denoiser")[0].items():
        torch.testing.assert_close(layer.up, plain[name].up * (2 / RANK))


def damaged(name: str) -> dict[str, Tensor]:
    tensors = tiny_lora("sd", 1, ("unet", "text_encoder"), part="attn").kohya()
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    match name:
        case "dora" | "loha" | "lokr" | "tucker":
            sign = {"dora": "dora_scale", "loha": "hada_w1_a", "lokr": "lokr_w1", "tucker": "lora_mid.weight"}[name]
            return tensors | {f"{layer}.{sign}": torch.ones(4, 4)}
        case "peft dora":
            return {"unet.conv_in.lora_magnitude_vector": torch.ones(4)}
        case "no lora":
            return {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4)}
        case "empty":
            return {}
        case "unknown":
            return tensors | {
                name.replace("down_blocks_1", "down_blocks_7"): one.clone() for name, one in tensors.items()
            }
        case "half":
            return {name: tensor for name, tensor in tensors.items() if name != f"{layer}.lora_up.weight"}
        case "width":
            return tensors | {f"{layer}.lora_down.weight": torch.ones(4, 320)}
        case "rank":
            return tensors | {f"{layer}.lora_down.weight": torch.ones(3, 64)}
        case "alpha":
            return tensors | {f"{layer}.alpha": torch.ones(2)}
        case "integers":
            return tensors | {f"{layer}.lora_down.weight": torch.ones(4, 64, dtype=torch.int8)}
        case _:
            raise ValueError(name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dora", "is no plain LoRA but a DoRA"),
        ("loha", "is no plain LoRA but a LoHa"),
        ("lokr", "is no plain LoRA but a LoKr"),
        ("tucker", "a third matrix"),
        ("peft dora", "a DoRA (unet.conv_in.lora_magnitude_vector)"),
        ("no lora", "has a tensor that is none of a LoRA in kohya's or diffusers' names (model.diffusion_model"),
        ("empty", "has no tensors"),
        ("unknown", "layers are none of this model's: lora_unet_down_blocks_7"),
        ("half", "has no up"),
        ("width", "[4, 320] and [64, 4] for a layer of [64, 64]"),
        ("rank", "[3, 64] and [64, 4] for a layer of [64, 64]"),
        ("alpha", "has an alpha that is not one number"),
        ("integers", "is I8"),
    ],
)
def test_what_is_no_lora_of_the_model_is_refused_in_one_line(name: str, told: str) -> None:
    save_lora(damaged(name), "wrong.safetensors")
    refused(told, {"file": "wrong.safetensors"})


def refused(told: str, lora: Mapping[str, Any], model: str = "sd") -> None:
    """By the name of the field, and before any weight is read."""
    with pytest.raises(RegionalError) as error:
        asyncio.run(render.fn(parse_job(asked(model, regions=[{"prompt": "leaves", "mask": LEFT, "loras": [lora]}]))))
    line = str(error.value)
    assert line.startswith("regions.0.loras.0.file: ")
    assert told in line
    assert "\n" not in line
    assert not loaded_parts().keys


def test_a_lora_of_another_family_is_refused() -> None:
    refused("is a LoRA of a model of other sizes", used("sd", "t"), model="xl")
    refused("are none of this model's", used("xl", "t"), model="sd")


def test_a_family_without_loras_refuses_them_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = dataclasses.replace(open_folder("sd").facts, takes_loras=False)
    monkeypatch.setattr(StableDiffusion, "facts", property(lambda _: silent))
    refused("Stable Diffusion takes no LoRAs", used("sd", "a"))


def test_what_is_no_safetensors_file_is_never_read() -> None:
    torch.save({"lora": torch.ones(2)}, "style.pt")
    refused("is no .safetensors file (pickled weights are never read)", {"file": "style.pt"})
    Path("style.pt").rename("style.safetensors")
    refused("has damaged weights", {"file": "style.safetensors"})
    Path("folder.safetensors").mkdir()
    refused("is a folder", {"file": "folder.safetensors"})
    refused("does not exist", {"file": "missing.safetensors"})


def test_numbers_without_end_are_refused() -> None:
    tensors = tiny_lora("sd", 1).kohya()
    next(iter(tensors.values()))[0, 0] = float("nan")
    with pytest.raises(RegionalError, match=r"^loras\.0\.file: .*numbers that are not finite"):
        opened("sd", save_lora(tensors, "nan.safetensors")).read("denoiser")


def test_a_server_s_jobs_name_loras_under_its_roots(tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "a.safetensors"
    shutil.copy("sd-a.safetensors", outside)
    refused("under REGIONAL_ASSET_ROOTS", {"file": str(outside)})
    Path("link.safetensors").symlink_to(outside)
    refused("under REGIONAL_ASSET_ROOTS", {"file": "link.safetensors"})


def test_a_lora_that_changed_since_it_was_planned_is_not_read() -> None:
    lora = opened("sd", "sd-a.safetensors")
    save_lora(tiny_lora("sd", 9).peft(), "sd-a.safetensors")
    with pytest.raises(RegionalError, match="changed while it was read"):
        lora.read("denoiser")


def test_a_job_has_at_most_eight() -> None:
    with pytest.raises(BadJob, match="loras"):
        parse_job(asked(loras=[used("sd", "a")] * 9))
