"""Single files in the original key layouts are the folders that they were written from, with the network unplugged."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils

from prefect_regional_diffusion.sampling_core.models.diffusers_folder import DiffusersFolder
from prefect_regional_diffusion.sampling_core.models.folder import open_checkpoint
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from tests.original_layouts import configuration_of, written
from tests.published_models import as_published
from tests.test_families import drawn
from tests.tiny_models import OTHER, SMALL, Sizes, tiny_sd, tiny_sdxl

KINDS: dict[str, Callable[[Path, int, Sizes], str]] = {
    "sd1": tiny_sd,
    "sd2": lambda *of: tiny_sd(*of, sd2=True, prediction_type="v_prediction"),
    "sdxl": tiny_sdxl,
}


@pytest.fixture(autouse=True)
def nothing_loaded(workdir: Path) -> None:
    """What is drawn is of the file that the test has written, not of a folder's parts that are in memory."""
    loaded_parts.cache_clear()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_of: object) -> NoReturn:
        raise AssertionError("a model file needs no network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def networks(model: str) -> dict[str, Any]:
    """All networks of a model, by folder."""
    checkpoint = open_checkpoint(model)
    assert isinstance(checkpoint, DiffusersFolder)
    return {folder: checkpoint.load(folder, Placement()) for folder in checkpoint.networks}


def assert_alike(one: str, other: str) -> None:
    """Two models have the same tensors, to the last bit, and settings."""
    ours, theirs = networks(one), networks(other)
    assert set(ours) == set(theirs)
    for folder, network in ours.items():
        found, wanted = network.state_dict(), theirs[folder].state_dict()
        assert set(found) == set(wanted)
        assert all(not tensor.is_meta and torch.equal(tensor, wanted[name]) for name, tensor in found.items())
        assert all(not buffer.is_meta for buffer in network.buffers())


@pytest.mark.parametrize(("seed", "sizes"), [(0, SMALL), (1, OTHER)], ids=["small", "other"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_its_folder(kind: str, seed: int, sizes: Sizes) -> None:
    KINDS[kind](Path("folder"), seed, sizes)
    written(Path("folder"), Path("one.safetensors"), kind)
    assert_alike("one.safetensors", "folder")
    found = open_checkpoint("one.safetensors").facts
    assert found == open_checkpoint("folder").facts
    assert np.array_equal(drawn(model="one.safetensors"), drawn(model="folder"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_are_those_that_diffusers_own_converters_give(kind: str) -> None:
    """Converters of the same library that the folders are from, where they do their work without a hub."""
    KINDS[kind](Path("folder"), 0, SMALL)
    tensors = written(Path("folder"), Path("one.safetensors"), kind)
    ours = {folder: network.state_dict() for folder, network in networks("one.safetensors").items()}
    unet = configuration_of(Path("folder"), "unet")
    theirs = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(dict(tensors), unet),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(dict(tensors), configuration_of(Path("folder"), "vae")),
    }
    for folder, wanted in theirs.items():
        assert set(ours[folder]) == set(wanted)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours[folder].items())


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_file_needs_nothing_beside_it_if_it_is_built_as_the_published_models_are(kind: str) -> None:
    as_published(Path("folder"), kind)
    written(Path("folder"), Path("one.safetensors"), kind, beside=False)
    assert_alike("one.safetensors", "folder")
    ours, theirs = open_checkpoint("one.safetensors"), open_checkpoint("folder")
    assert ours.facts == theirs.facts
    assert ours.reading("a photo of a cat") == theirs.reading("a photo of a cat")
    assert np.array_equal(drawn(model="one.safetensors"), drawn(model="folder"))
