"""The tests themselves check shapes: a call with tensors that do not fit together fails."""

import pytest
import torch
from jaxtyping import TypeCheckError

from prefect_regional_diffusion.sampling_core.models.unet import denoised
from tests.conftest import modules_with_shapes


def test_tensors_that_do_not_fit_together_fail() -> None:
    rows = torch.zeros(2, 4, 8, 8)
    with pytest.raises(TypeCheckError):
        denoised(rows, rows[..., :7], torch.ones(2, 1, 1, 1), "epsilon")


def test_all_that_handles_tensors_is_checked() -> None:
    rooms = {module.split(".")[2] for module in modules_with_shapes()}
    assert {"masks", "noise", "solvers", "engine", "comfyui", "models", "planning"} <= rooms
