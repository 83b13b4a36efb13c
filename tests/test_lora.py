"""LoRAs: rows of one forward with different ones, equal to merged weights; files as people have them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import lora_conversion_utils as utils
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.flows.shard import shard
from prefect_regional_diffusion.sampling_core.errors import RegionalError
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import BadJob, parse_job
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning, stack
from prefect_regional_diffusion.sampling_core.models.family import Canvas
from prefect_regional_diffusion.sampling_core.models.files import find_file
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.lora_file import Lora
from prefect_regional_diffusion.sampling_core.models.lora_names import layer_names
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers, combined
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.sampling_core.schedules import sigma_schedule
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.tiny_loras import KOHYA, RANK, WEIGHTS, merged, save_lora, tiny_lora
from tests.tiny_models import OTHER, SMALL, Sizes, tiny_sd, tiny_sdxl

TEXT = {"sd": ("text_encoder",), "xl": ("text_encoder", "text_encoder_2")}
MODELS = sorted(TEXT)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `xl` and `sd`; of each, files of LoRAs `a` and `b`, and of one that acts on text as well, `t`."""
    folder = tmp_path_factory.mktemp("models")
    tiny_sdxl(folder / "xl")
    tiny_sd(folder / "sd")
    for model in MODELS:
        save_lora(tiny_lora(folder / model, 1).peft(), folder / f"{model}-a.safetensors")
        save_lora(tiny_lora(folder / model, 2, part="attn").kohya(), folder / f"{model}-b.safetensors")
        texts = tiny_lora(folder / model, 3, (*TEXT[model], "unet"), size=0.8)
        save_lora(texts.kohya(), folder / f"{model}-t.safetensors")
    return folder


@pytest.fixture(autouse=True)
def models(made: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of them; nothing is loaded."""
    shutil.copytree(made, workdir, dirs_exist_ok=True)
    monkeypatch.setattr("prefect_regional_diffusion.tasks.runtime.model_cache._loaded", {})


def opened(model: str, file: str) -> Lora:
    return open_folder(model).open_lora(find_file("loras.0.file", file, str(Path(file).resolve())))


def layers_of(model: str, *weighted: tuple[str, float]) -> LoraLayers:
    """What is added to the denoiser."""
    read = [(opened(model, f"{model}-{name}.safetensors").read("denoiser")[0], strength) for name, strength in weighted]
    return combined(read, "cpu", torch.float32)


class Answers:
    """Denoised predictions of rows of a model, with prompts of their own."""

    def __init__(self, model: str) -> None:
        checkpoint, canvas = open_folder(model), Canvas(128, 128)
        encoder = checkpoint.load_text_encoder("cpu", torch.float32)
        self._network = checkpoint.load_denoiser("cpu", torch.float32)
        told = [encoder.encode(f"prompt {row}").joined(checkpoint.canvas_conditioning(canvas)) for row in range(4)]
        self._told = told
        self._level = sigma_schedule(checkpoint.noise_schedule(canvas, 4), "simple", 4)[1]
        self._x = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(5)) * 3

    def __call__(self, rows: list[int], *loras: LoraLayers) -> Tensor:
        """Of some rows, in one forward."""
        told = stack([self._told[row] for row in rows])
        return self._network(self._x[rows], [self._level] * len(rows), told, loras)


@pytest.mark.parametrize("model", MODELS)
def test_rows_of_one_forward_have_loras_of_their_own(model: str, tmp_path: Path) -> None:
    """The bar: to 1e-5 what separate forwards answer, and what merged weights do."""
    a, b = tiny_lora(model, 1), tiny_lora(model, 2, part="attn")
    only_a, only_b = layers_of(model, ("a", 0.7)), layers_of(model, ("b", -0.4))
    both = layers_of(model, ("a", 0.5), ("b", 1.0))
    answers = Answers(model)
    for sets in ([{}, only_a, only_b, both], [only_b, {}, only_a, only_a]):
        together = answers([0, 1, 2, 3], *sets)
        for row, layers in enumerate(sets):
            torch.testing.assert_close(together[row], answers([row], layers)[0], atol=1e-5, rtol=0)
    together, plain = answers([0, 1, 2, 3], {}, only_a, only_b, both), answers([0, 1, 2, 3])
    for row, weighted in {1: [(a, 0.7)], 3: [(a, 0.5), (b, 1.0)]}.items():
        whole = Answers(merged(model, tmp_path / f"merged{row}", *weighted))([row])
        torch.testing.assert_close(together[row], whole[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(together[0], plain[0], atol=1e-5, rtol=0)
    assert all((plain[row] - together[row]).abs().max() > 0.05 for row in (1, 2, 3))


def test_the_network_is_left_as_it_was() -> None:
    checkpoint = open_folder("sd")
    denoiser: Any = checkpoint.load_denoiser("cpu", torch.float32)
    weights = {name: tensor.clone() for name, tensor in denoiser._unet.state_dict().items()}
    told = checkpoint.load_text_encoder("cpu", torch.float32).encode("a prompt")
    level = sigma_schedule(checkpoint.noise_schedule(Canvas(128, 128), 4), "simple", 4)[1]
    x = torch.randn(1, 4, 16, 16)
    before = denoiser(x, [level], told)
    with pytest.raises(KeyError):
        denoiser(x, [level], told, [{"no.such.layer": next(iter(layers_of("sd", ("a", 1.0)).values()))}])
    assert not torch.equal(denoiser(x, [level], told, [layers_of("sd", ("a", 1.0))]), before)
    assert torch.equal(denoiser(x, [level], told), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in denoiser._unet.state_dict().items())


@pytest.mark.parametrize("model", MODELS)
def test_text_encoders_read_with_it(model: str, tmp_path: Path) -> None:
    lora = tiny_lora(model, 3, (*TEXT[model], "unet"), size=0.8)
    read = opened(model, f"{model}-t.safetensors").read("text_encoder")
    told = [combined([(layers, 0.6)], "cpu", torch.float32) for layers in read]
    plain = open_folder(model).load_text_encoder("cpu", torch.float32)
    whole = open_folder(merged(model, tmp_path / "merged", (lora, 0.6))).load_text_encoder("cpu", torch.float32)
    for name, expected in whole.encode("some words").tensors.items():
        torch.testing.assert_close(plain.encode("some words", told)[name], expected, atol=1e-5, rtol=0)
        assert (plain.encode("some words")[name] - expected).abs().max() > 0.01


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
    names = [name for name in layer_names("unet", layers) if "put_blocks" in name or "middle_block" in name]
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


# Jobs.

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
MIDDLE = {"x": 0.25, "y": 0, "width": 0.5, "height": 0.5}
RIGHT = {"x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5}


def used(model: str, name: str, strength: float = 1.0, **fields: Any) -> dict[str, Any]:
    return {"file": f"{model}-{name}.safetensors", "strength": strength, **fields}


def asked(model: str = "sd", **fields: Any) -> dict[str, Any]:
    job = {"model": model, "prompt": "a red circle", "width": 128, "height": 128, "seed": 3, "steps": 4, "cfg": 4.0}
    return job | {"sampler": "dpmpp_2m", "scheduler": "simple", "base_only_steps": 0} | fields


def three_regions(model: str) -> dict[str, Any]:
    """Two LoRAs in different regions, and both in the third."""
    a, b = used(model, "a", 0.8), used(model, "b", -0.5)
    return asked(
        model,
        regions=[
            {"prompt": "green leaves", "mask": LEFT, "loras": [a]},
            {"prompt": "blue water", "mask": MIDDLE, "loras": [b]},
            {"prompt": "green leaves", "mask": RIGHT, "loras": [a, b]},
        ],
    )


def record_of(job: Mapping[str, Any], checkpoint_steps: int | None = None, store: str = "store") -> dict[str, Any]:
    place = f".regional/store/{store}"
    return asyncio.run(render.fn(parse_job(job), checkpoint_steps=checkpoint_steps, store=place))


def latent_of(record: Mapping[str, Any], store: str = "store") -> Tensor:
    tensors = load_file(Path(".regional/store") / store / f"{record['latents']}.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors) if tensors[name].dtype == torch.float32])


def picture_of(record: Mapping[str, Any]) -> Any:
    with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
        return np.asarray(picture).astype(int)


@pytest.mark.parametrize("model", MODELS)
def test_a_job_of_regions_with_loras_takes_one_forward_a_step(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, rows = UNetDenoiser.__call__, list[int]()

    def compared(network: UNetDenoiser, x: Tensor, levels: Any, told: Conditioning, loras: Any) -> Tensor:
        """The answers, after each is found to be that of a forward of its own."""
        found = answer(network, x, levels, told, loras)
        rows.append(len(x))
        for i in range(len(x)):
            row = slice(i, i + 1)
            alone = answer(network, x[row], levels[row], told.rows(row), loras[row])
            torch.testing.assert_close(found[row], alone, atol=1e-5 * max(1.0, levels[i].sigma), rtol=0)
        return found

    monkeypatch.setattr(UNetDenoiser, "__call__", compared)
    planned = prepare(parse_job(three_regions(model))).cost
    record = record_of(three_regions(model))
    # Base and three regions, each with its own negative row: no two have the same LoRAs.
    assert rows == [8] * 4
    assert (record["forwards"], record["evaluations"]) == (planned.forwards, planned.evaluations) == (4, 32)


def test_a_region_s_lora_draws_in_its_region() -> None:
    region = {"prompt": "a red circle", "mask": LEFT}
    plain = picture_of(record_of(asked(regions=[region])))
    styled = picture_of(record_of(asked(regions=[region | {"loras": [used("sd", "a")]}])))
    left, right = (np.abs(plain - styled)[:, half].mean() for half in (slice(0, 48), slice(80, 128)))
    assert left > 5
    assert left > 3 * right


@pytest.mark.parametrize("composition", ["joint", "sequential"])
@pytest.mark.parametrize("model", MODELS)
def test_it_goes_on_to_the_same_bits(model: str, composition: str) -> None:
    job = three_regions(model) | {"composition": composition}
    whole = record_of(job)
    first = picture_of(whole)
    record_of(job, 1, "cut")
    newest = max(Path(".regional/store/cut").glob("latents/*/*.safetensors"), key=lambda state: state.stem)
    newest.unlink()
    again = record_of(job, 1, "cut")
    assert (picture_of(again) == first).all()
    assert again["steps_computed"] > 0


def test_who_has_the_same_loras_shares_rows() -> None:
    a = used("sd", "a")

    def rows(**fields: Any) -> int:
        return prepare(parse_job(asked(**fields))).cost.evaluations

    region = {"prompt": "green leaves", "mask": LEFT}
    assert rows(regions=[region]) == rows(regions=[region], loras=[a]) == 4 * 3, "the region has the job's"
    assert rows(regions=[region | {"loras": []}], loras=[a]) == 4 * 4
    assert rows(regions=[region | {"loras": [a]}], loras=[a]) == 4 * 3
    shutil.copy("sd-a.safetensors", "copy.safetensors")
    assert rows(regions=[region | {"loras": [a | {"file": "copy.safetensors"}]}], loras=[a]) == 4 * 3, "by content"


def test_no_strength_is_no_lora() -> None:
    plain = record_of(asked())
    none = record_of(asked(loras=[used("sd", "t", 0.0)]), store="none")
    assert none["job_hash"] == plain["job_hash"]
    assert torch.equal(latent_of(plain), latent_of(none, "none"))


def test_a_job_is_known_by_what_its_files_hold() -> None:
    def job_hash(*loras: dict[str, Any]) -> str:
        return prepare(parse_job(asked(loras=list(loras)))).job_hash

    a, b = used("sd", "a", 0.5), used("sd", "b")
    shutil.copy("sd-a.safetensors", "copy.safetensors")
    assert job_hash(a, b) == job_hash(b, a) == job_hash(a | {"file": "copy.safetensors"}, b)
    assert job_hash(a, a) == job_hash(a | {"strength": 1.0})
    assert job_hash(a) == job_hash(a | {"text_strength": 0.3}), "it has no weights for text"
    t = used("sd", "t", 0.5)
    different = [(), (a,), (b,), (a, b), (t,), (t | {"text_strength": 0.0},), (a | {"strength": 0.6},)]
    assert len({job_hash(*loras) for loras in different}) == len(different)


@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_is_read_with_the_loras_of_its_region(model: str) -> None:
    t, same = used(model, "t", 0.5), {"prompt": "a red circle", "mask": LEFT}
    record_of(asked(model, regions=[same | {"loras": [t]}, same | {"loras": [t | {"text_strength": 0}]}], steps=1))
    prompts = [load_file(file)["prompt_embeds"] for file in Path(".regional/store/store/prompts").iterdir()]
    # What acts on the denoiser alone leaves a prompt as it is; without a negative prompt, SDXL has zeros.
    assert len(prompts) == 4
    apart = [(one - other).abs().max() for i, one in enumerate(prompts) for other in prompts[:i]]
    if model == "sd":
        assert min(apart) > 0.01


def test_jobs_with_different_loras_share_their_forwards() -> None:
    jobs = [
        NamedJob(name=f"job {name}", job=parse_job(asked(loras=[used("sd", name)] if name else [], prompt=f"a {name}")))
        for name in ("a", "b", "t", "")
    ]
    alone = [latent_of(record_of(one.job.model_dump(mode="json"))) for one in jobs]
    done = asyncio.run(shard.fn(jobs, store=".regional/store/together", keep="final"))
    assert (done["drawn"], done["forwards"]) == (4, 4)
    for one, expected in zip(jobs, alone, strict=True):
        record = record_of(one.job.model_dump(mode="json"), store="together")
        assert record["steps_computed"] == 0
        torch.testing.assert_close(latent_of(record, "together"), expected, atol=1e-4, rtol=1e-4)


def test_a_record_tells_the_files_and_no_paths(workdir: Path) -> None:
    place = str(workdir / "sd-a.safetensors")
    record = record_of(asked(loras=[used("sd", "a") | {"file": place}], steps=1))
    assert record["files"]["loras.0.file"]["name"] == "sd-a.safetensors"
    assert record["files"]["loras.0.file"]["sha256"] == opened("sd", place).fingerprint()
    assert str(workdir) not in json.dumps(record["job"])


# Files that are refused.


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
        ("dora", "a plain LoRA, which this is not: a DoRA"),
        ("loha", "a plain LoRA, which this is not: a LoHa"),
        ("lokr", "a plain LoRA, which this is not: a LoKr"),
        ("tucker", "a third matrix"),
        ("peft dora", "a DoRA (unet.conv_in.lora_magnitude_vector)"),
        ("no lora", "no tensor of one: model.diffusion_model"),
        ("empty", "there is no tensor in it"),
        ("unknown", "layers are none of the model's: lora_unet_down_blocks_7"),
        ("half", "has no up"),
        ("width", "[4, 320] and [64, 4] for a layer of [64, 64]"),
        ("rank", "[3, 64] and [64, 4] for a layer of [64, 64]"),
        ("alpha", "alpha is one number"),
        ("integers", "is I8"),
    ],
)
def test_what_is_no_lora_of_the_model_is_refused_in_one_line(name: str, told: str) -> None:
    save_lora(damaged(name), "wrong.safetensors")
    refused(told, {"file": "wrong.safetensors"})


def refused(told: str, lora: Mapping[str, Any], model: str = "sd") -> None:
    """By the name of the field, and before any weight is read."""
    shutil.rmtree("renders", ignore_errors=True)
    with pytest.raises(RegionalError) as error:
        record_of(asked(model, regions=[{"prompt": "leaves", "mask": LEFT, "loras": [lora]}]))
    line = str(error.value)
    assert line.startswith("regions.0.loras.0.file: ")
    assert told in line
    assert "\n" not in line
    assert not Path("renders").exists() or not list(Path("renders").iterdir())


def test_a_lora_of_another_family_is_refused() -> None:
    refused("are none of the model's", used("sd", "t"), model="xl")
    refused("are none of the model's", used("xl", "t"), model="sd")


def test_what_is_no_safetensors_file_is_never_read() -> None:
    torch.save({"lora": torch.ones(2)}, "style.pt")
    refused("a .safetensors file (pickled weights are never read)", {"file": "style.pt"})
    Path("style.pt").rename("style.safetensors")
    refused("whole weights", {"file": "style.safetensors"})
    Path("folder.safetensors").mkdir()
    refused("no folder", {"file": "folder.safetensors"})
    refused("a file that is there", {"file": "missing.safetensors"})


def test_numbers_without_end_are_refused() -> None:
    tensors = tiny_lora("sd", 1).kohya()
    next(iter(tensors.values()))[0, 0] = float("nan")
    refused("numbers are finite", {"file": save_lora(tensors, "nan.safetensors")})


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
