"""What a job's `model` may be: a name beside the job, in the machine's model folders, or in the hub's cache."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import NoReturn

import pytest
from huggingface_hub import constants

from prefect_regional_diffusion.sampling_core.errors import BadInput, ModelError
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.tasks.inputs.file_names import beside, portable_name
from prefect_regional_diffusion.tasks.inputs.model_names import find_model
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.model_cache import open_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def machine(tmp_path_factory: pytest.TempPathFactory, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with model folders `a` and `b` and a cache `hub`, none of them where jobs are, and no network."""

    def refused(*_of: object) -> NoReturn:
        raise AssertionError("nothing is fetched")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    machine = tmp_path_factory.mktemp("machine")
    for name in ("a", "b", "hub"):
        (machine / name).mkdir()
    monkeypatch.setenv("REGIONAL_ASSET_ROOTS", str(workdir))
    monkeypatch.setenv("REGIONAL_MODEL_FOLDERS", f"{machine}/a, {machine}/b")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(machine / "hub"))
    settings.cache_clear()
    return machine


def let(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv("REGIONAL_MODEL_FOLDERS", ",".join(map(str, folders)))
    settings.cache_clear()


def cached(machine: Path, variant: str | None = None) -> Path:
    """The embedded model as Hugging Face's tools keep it: links to files that are named by their content."""
    repository = machine / "hub" / "models--org--name"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    blobs.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v1").write_text(COMMIT)
    for number, file in enumerate(sorted(file for file in EMBEDDED.rglob("*") if file.is_file())):
        shutil.copyfile(file, blobs / f"{number}")
        name = file.relative_to(EMBEDDED)
        if variant and name.suffix == ".safetensors":
            name = name.with_suffix(f".{variant}.safetensors")
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        depth = "../" * len(name.parts)
        (snapshot / name).symlink_to(f"{depth}../blobs/{number}")
    return snapshot


def test_a_name_is_looked_for_beside_the_job_first_and_then_in_each_folder(machine: Path, workdir: Path) -> None:
    typed = beside(str(workdir), "sub/one.safetensors")
    places = [folder / "sub" / "one.safetensors" for folder in (machine / "b", machine / "a", workdir)]
    for place in places:
        place.parent.mkdir()
        place.touch()
        for name in (typed, "sub/one.safetensors"):
            assert find_model("model", name).place == str(place)
            assert portable_name(name) == "sub/one.safetensors"


def test_a_model_in_a_model_folder_is_loaded_from_there(machine: Path) -> None:
    shutil.copytree(EMBEDDED, machine / "b" / "mine")
    assert open_model("mine").fingerprint() == open_model("embedded").fingerprint()


@pytest.mark.parametrize("name", ["../b/secret.safetensors", "link.safetensors"])
def test_no_name_leads_out_of_a_model_folder(machine: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    let(monkeypatch, machine / "a")
    (machine / "b" / "secret.safetensors").touch()
    (machine / "a" / "link.safetensors").symlink_to(machine / "b" / "secret.safetensors")
    with pytest.raises(BadInput, match="REGIONAL_MODEL_FOLDERS"):
        find_model("regions.0.model", name)


def test_a_name_that_is_nowhere_is_told_where_it_was_looked_for(machine: Path) -> None:
    with pytest.raises(
        ModelError, match=rf"^regions\.0\.model: .*none\.safetensors does not exist.*{machine}/a, {machine}/b"
    ):
        find_model("regions.0.model", "none.safetensors")


@pytest.mark.parametrize("name", ["org/name", "org/name@main", "org/name@v1", f"org/name@{COMMIT}"])
def test_a_repository_is_taken_from_the_cache(machine: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cached(machine)
    let(monkeypatch, machine / "hub")
    assert find_model("model", beside("/jobs", name)) == (str(snapshot), None)
    assert open_model(name).fingerprint() == open_model("embedded").fingerprint()


def test_a_variant_of_its_weights_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(machine, "fp16")
    let(monkeypatch, machine / "hub")
    assert open_model("org/name:fp16").fingerprint() == open_model("embedded").fingerprint()
    with pytest.raises(ModelError, match=r"the variant bf16"):
        open_model("org/name@v1:bf16")
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model.safetensors is missing"):
        open_model("org/name")


def test_a_cache_is_nothing_that_a_job_may_name_unless_it_is_under_a_root(machine: Path) -> None:
    cached(machine)
    with pytest.raises(BadInput, match="the Hugging Face cache is not under these") as refused:
        find_model("model", "org/name")
    assert str(machine / "hub") not in str(refused.value)


@pytest.mark.parametrize("name", ["org/other", "org/name@v2"])
def test_what_is_not_in_the_cache_is_not_fetched(machine: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(machine)
    let(monkeypatch, machine / "hub")
    with pytest.raises(ModelError, match=r"nothing is fetched unless REGIONAL_HUB_DOWNLOADS is true"):
        find_model("model", name)


def test_it_is_fetched_where_the_setting_says_so(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no hub to ask here: that it is asked is seen from the connection that fails."""
    let(monkeypatch, machine / "hub")
    monkeypatch.setenv("REGIONAL_HUB_DOWNLOADS", "true")
    settings.cache_clear()
    asked: list[object] = []

    def connection(*of: object, **_named: object) -> NoReturn:
        asked.append(of)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", connection)
    with pytest.raises(ModelError, match=r"org/other does not exist"):
        find_model("model", "org/other")
    assert asked
