"""The tests themselves check shapes: a call with tensors that do not fit together fails."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from prefect_regional_diffusion.sampling_core.models.unet import denoised
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Mask
from tests.conftest import modules_with_shapes
from tests.typechecking import checked

LATENT, MASK, OTHER = torch.zeros(1, 4, 8, 6), torch.zeros(8, 6), torch.zeros(8, 5)


def test_tensors_that_do_not_fit_together_fail() -> None:
    rows = torch.zeros(2, 4, 8, 8)
    with pytest.raises(BeartypeCallHintViolation):
        denoised(rows, rows[..., :7], torch.ones(2, 1, 1, 1), "epsilon")


def test_all_that_handles_tensors_is_checked() -> None:
    rooms = {module.split(".")[2] for module in modules_with_shapes()}
    assert {"masks", "noise", "solvers", "engine", "comfyui", "models", "planning"} <= rooms


@checked
def _first(latent: Latent, mask: Mask) -> Mask:
    return latent[0, 0]


@checked
def _narrow(latent: Latent) -> Mask:
    return latent[0, 0, :, 1:].unsqueeze(0)


@checked
def _within_another(mask: Mask) -> None:
    _first(LATENT, MASK)


@checked
def _stepping(latent: Latent, mask: Mask) -> Generator[None, None, None]:
    yield


@checked
@dataclass
class _Pair:
    latent: Latent
    mask: Mask


@pytest.mark.parametrize("call", [_first, _stepping, _Pair])
def test_an_axis_has_one_size_among_the_arguments(call: Callable[..., object]) -> None:
    call(LATENT, mask=MASK)
    with pytest.raises((BeartypeCallHintViolation, TypeCheckError)):
        call(LATENT, mask=OTHER)


def test_what_is_returned_is_checked_with_the_arguments() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        _narrow(LATENT)


def test_each_call_has_axes_of_its_own() -> None:
    _within_another(OTHER)
