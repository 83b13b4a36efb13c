"""Single files in the original key layouts are the folders that they were written from, with the network unplugged."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from prefect_regional_diffusion.sampling_core.models.diffusers_folder import DiffusersFolder
from prefect_regional_diffusion.sampling_core.models.folder import open_checkpoint
from tests.original_layouts import written
from tests.test_families import drawn, nothing_loaded
from tests.tiny_models import OTHER, SMALL, Sizes, tiny_sd, tiny_sdxl

__all__ = ["nothing_loaded"]

KINDS: dict[str, Callable[[Path, int, Sizes], str]] = {
    "sd1": tiny_sd,
    "sd2": lambda *of: tiny_sd(*of, sd2=True, prediction_type="v_prediction"),
    "sdxl": tiny_sdxl,
}


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
    return {folder: checkpoint.load(folder, "cpu", torch.float32) for folder in checkpoint.networks}


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
