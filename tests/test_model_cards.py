"""Models whose parts lie in files of their own, as ComfyUI keeps them: a card names them."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.errors import BadInput, ModelError, RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import DiffusersFolder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.tasks.inputs.file_names import beside as named_beside
from prefect_regional_diffusion.tasks.inputs.file_search import FolderKind, find_place
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.model_cache import open_model
from tests.original_flow_layouts import DIFFUSION, beside, flux_dit, mmdit, save
from tests.original_layouts import Tensors, ldm_vae, original, weights_of
from tests.tiny_flow_models import tiny_flux, tiny_sd3
from tests.tiny_models import tiny_sd, tiny_sdxl

CARD = Path("mine.yaml")
FLUX = "network: network.safetensors\ntext_encoders: [t5.safetensors, clip_l.safetensors]\nvae: ae.safetensors\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("folders")
    tiny_flux(top / "flux")
    tiny_sd3(top / "sd3")
    tiny_sd(top / "sd1")
    tiny_sdxl(top / "sdxl")
    return top


@pytest.fixture(autouse=True)
def machine(
    folders: Path, tmp_path_factory: pytest.TempPathFactory, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A machine with a folder for models that is not where jobs are, and no network."""

    def refused(*_of: object) -> NoReturn:
        raise AssertionError("nothing is fetched")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    machine = tmp_path_factory.mktemp("models")
    monkeypatch.setenv("REGIONAL_ASSET_ROOTS", str(workdir))
    monkeypatch.setenv("REGIONAL_MODEL_FOLDERS", str(machine))
    settings.cache_clear()
    return machine


def bare_vae(folder: Path) -> Tensors:
    """An autoencoder alone, as `ae.safetensors` has it; with what training has left in some."""
    found = {name.removeprefix("first_stage_model."): one for name, one in ldm_vae(weights_of(folder, "vae")).items()}
    return found | {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.tensor(0.9)}


def hf(folder: Path, part: str) -> Tensors:
    """A text encoder of CLIP as transformers had it, its projection beside it."""
    return {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": tensor
        for name, tensor in weights_of(folder, part).items()
    }


def put_flux(folder: Path, into: Path = Path()) -> None:
    """The four files of FLUX.1, and a card for them."""
    save(flux_dit(weights_of(folder, "transformer")), into / "network.safetensors")
    save(hf(folder, "text_encoder"), into / "clip_l.safetensors")
    save(weights_of(folder, "text_encoder_2"), into / "t5.safetensors")
    save(bare_vae(folder), into / "ae.safetensors")
    CARD.write_text(FLUX)
    beside(folder, CARD)


def tensors_of(model: str) -> dict[str, Tensors]:
    checkpoint = open_model(model)
    assert isinstance(checkpoint, DiffusersFolder)
    return {part: checkpoint.load(part, Placement()).state_dict() for part in checkpoint.networks}


def assert_is(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two have the same tensors, to the last bit, and settings."""
    ours, facts = tensors_of(model), open_model(model).facts
    monkeypatch.setenv("REGIONAL_ASSET_ROOTS", str(folder))
    settings.cache_clear()
    theirs = tensors_of(str(folder))
    assert facts == open_model(str(folder)).facts
    assert set(ours) == set(theirs)
    for part, found in ours.items():
        assert set(found) == set(theirs[part])
        assert all(torch.equal(tensor, theirs[part][name]) for name, tensor in found.items())


def refusal(kind: type[RegionalError] = ModelError) -> str:
    with pytest.raises(kind) as refused:
        open_model(str(CARD)).check_weights("denoiser")
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith("model")
    return line


def test_the_parts_of_flux_are_its_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_flux(folders / "flux")
    assert_is("mine.yaml", folders / "flux", monkeypatch)


def test_a_region_draws_with_a_card_and_the_record_calls_it_by_its_name(folders: Path, workdir: Path) -> None:
    put_flux(folders / "flux")
    shutil.copytree(folders / "flux", "folder")
    region = {"prompt": "a dog", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}
    job = {"prompt": "a Cat", "width": 128, "height": 128, "seed": 3, "steps": 1, "regions": [region]}

    def drawn(model: str) -> tuple[dict[str, Any], bytes]:
        record = asyncio.run(render.fn(parse_job(job | {"model": model, "regions": [region | {"model": model}]})))
        with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
            return record, picture.tobytes()

    record, picture = drawn("mine.yaml")
    assert picture == drawn("folder")[1]
    assert record["files"]["regions.0.model"] == {
        "name": "mine.yaml",
        "sha256": open_model("mine.yaml").fingerprint(),
    }


def test_what_the_files_are_called_and_in_which_order_changes_nothing(folders: Path) -> None:
    put_flux(folders / "flux")
    before = open_model("mine.yaml").fingerprint()
    Path("t5.safetensors").rename("encoder.safetensors")
    CARD.write_text(FLUX.replace("[t5.safetensors, clip_l.safetensors]", "[clip_l.safetensors, encoder.safetensors]"))
    assert open_model("mine.yaml").fingerprint() == before
    other = load_file("ae.safetensors")
    other["decoder.conv_in.bias"] += 1
    save_file(other, "ae.safetensors")
    assert open_model("mine.yaml").fingerprint() != before


def test_comfyuis_folders_are_looked_into(folders: Path, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_flux(folders / "flux", machine)
    for name, kind in (("network", "unet"), ("clip_l", "clip"), ("t5", "text_encoders"), ("ae", "vae")):
        (machine / kind).mkdir()
        (machine / f"{name}.safetensors").rename(machine / kind / f"{name}.safetensors")
    assert_is("mine.yaml", folders / "flux", monkeypatch)


def test_a_card_in_a_folder_for_models_is_found_by_its_name(folders: Path, machine: Path) -> None:
    put_flux(folders / "flux", machine)
    here = open_model("mine.yaml").fingerprint()
    CARD.rename(machine / CARD)
    CARD.with_suffix("").rename(machine / "flux-settings")
    (machine / CARD).write_text(f"{FLUX}configurations: flux-settings\n")
    assert open_model(named_beside("/jobs", "mine.yaml")).fingerprint() == here


@pytest.mark.parametrize("name", ["one.safetensors", "sub/one.safetensors"])
def test_checkpoints_and_loras_are_found_by_bare_names(machine: Path, name: str) -> None:
    folders: dict[FolderKind, str] = {"model": "checkpoints", "LoRA": "loras"}
    for kind, folder in folders.items():
        place = machine / folder / name
        place.parent.mkdir(parents=True)
        place.touch()
        assert find_place("field", named_beside("/jobs", name), kind) == str(place)


@pytest.mark.parametrize("t5", [True, False])
def test_the_parts_of_stable_diffusion_3(folders: Path, t5: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text encoders beside a file that has the network and the autoencoder."""
    folder = folders / "sd3"
    if not t5:
        folder = Path(tiny_sd3(Path("folder"), t5=False)).resolve()
    network = {DIFFUSION + name: tensor for name, tensor in mmdit(weights_of(folder, "transformer")).items()}
    save(network | ldm_vae(weights_of(folder, "vae")), Path("most.safetensors"))
    save(hf(folder, "text_encoder"), Path("l.safetensors"))
    save(hf(folder, "text_encoder_2"), Path("g.safetensors"))
    names = ["g.safetensors", "l.safetensors"]
    if t5:
        save(weights_of(folder, "text_encoder_3"), Path("t5.safetensors"))
        names.append("t5.safetensors")
    CARD.write_text(f"checkpoint: most.safetensors\ntext_encoders: [{', '.join(names)}]\n")
    beside(folder, CARD)
    assert_is("mine.yaml", folder, monkeypatch)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("diffusers", [False, True], ids=["original names", "diffusers' names"])
def test_a_vae_beside_a_checkpoint_replaces_its_own(folders: Path, kind: str, diffusers: bool) -> None:
    tensors = original(folders / kind, kind)
    save(tensors, Path("one.safetensors"))
    beside(folders / kind, Path("one.safetensors"))
    changed = {name: tensor * 2 for name, tensor in weights_of(folders / kind, "vae").items()}
    written = ldm_vae(changed)
    save(
        changed if diffusers else {name.removeprefix("first_stage_model."): one for name, one in written.items()},
        Path("vae.safetensors"),
    )
    CARD.write_text("checkpoint: one.safetensors\nvae: vae.safetensors\nconfigurations: one\n")
    before, after = tensors_of("one.safetensors"), tensors_of("mine.yaml")
    assert set(after["vae"]) == set(changed)
    assert all(torch.equal(tensor, changed[name]) for name, tensor in after["vae"].items())
    for part in before.keys() - {"vae"}:
        assert all(torch.equal(tensor, after[part][name]) for name, tensor in before[part].items())


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("", "is no model card that can be read"),
        ("- a\n", "is no model card that can be read"),
        ("network: [\n", "is no model card that can be read: line"),
        ("vae: ae.safetensors\n", "either checkpoint (a file with all parts, or most) or network"),
        ("network: network.safetensors\ncheckpoint: network.safetensors\n", "either checkpoint"),
        ("network: network.safetensors\nclip: x\n", "clip is 'x': Extra inputs are not permitted"),
        ("network: 3\n", "network is 3: Input should be a valid string"),
        ("network: network.safetensors\n", "lacks an autoencoder: it is a FLUX.1 file"),
        (FLUX.replace("t5.s", "none.s"), "none.safetensors does not exist, nor in REGIONAL_MODEL_FOLDERS"),
        (FLUX.replace("t5.s", "ae.s"), "has a text encoder that is neither CLIP's nor T5's ('decoder.conv_in.bias'"),
        (FLUX.replace("t5.s", "clip_l.s"), "has text encoders that are the same one"),
        (FLUX.replace("ae.s", "t5.s"), "has a vae that is no autoencoder"),
        (FLUX.replace("[t5.safetensors, ", "["), "lacks T5's encoder: it is a FLUX.1 file"),
        (FLUX.replace("ae.safetensors", "ae.ckpt"), "is no .safetensors file"),
        (
            "checkpoint: sd1.safetensors\ntext_encoders: [clip_l.safetensors]\n",
            "has no place there ('text_encoders.clip_l",
        ),
        ("network: unet.safetensors\nvae: ae.safetensors\n", "lacks a text encoder: it is a Stable Diffusion 1 file"),
        ("network: shard.safetensors\nvae: ae.safetensors\n", "is one component in diffusers' names"),
    ],
)
def test_a_card_that_cannot_be_used_is_refused_by_name(folders: Path, card: str, told: str) -> None:
    put_flux(folders / "flux")
    Path("ae.ckpt").touch()
    tensors = original(folders / "sd1", "sd1")
    save(tensors, Path("sd1.safetensors"))
    bare = {name.removeprefix(DIFFUSION): tensor for name, tensor in tensors.items() if name.startswith(DIFFUSION)}
    save(bare, Path("unet.safetensors"))
    save(weights_of(folders / "flux", "transformer"), Path("shard.safetensors"))
    CARD.write_text(card)
    assert told in refusal()


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.safetensors", "link.safetensors"])
def test_a_card_names_nothing_outside_of_the_roots(folders: Path, workdir: Path, name: str) -> None:
    put_flux(folders / "flux")
    (workdir.parent / "secret.safetensors").touch()
    Path("link.safetensors").symlink_to(workdir.parent / "secret.safetensors")
    CARD.write_text(FLUX.replace("ae.safetensors", name))
    assert "model.vae: " in refusal(BadInput)


def test_the_folder_beside_a_card_is_asked_for(folders: Path) -> None:
    put_flux(folders / "flux")
    CARD.with_suffix("").rename("elsewhere")
    assert "has no mine/tokenizer_2/tokenizer.json beside it: T5's tokenizer" in refusal()
