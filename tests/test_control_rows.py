"""ControlNets and T2I-Adapters: rows of one forward with different ones, equal to separate forwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.conditioning import stack
from prefect_regional_diffusion.sampling_core.models.control_rows import RowControl
from prefect_regional_diffusion.sampling_core.models.family import Canvas, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.files import find_files
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.lora_rows import combined
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.row_adapters import ControlSource, RowAdapters
from prefect_regional_diffusion.sampling_core.schedules import sigma_schedule
from tests.linked_models import link
from tests.tiny_controls import MODELS, control_models
from tests.tiny_loras import opened, save_lora, tiny_lora


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return control_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def models(made: Path, workdir: Path) -> None:
    link(made, workdir)


class Answers:
    """Denoised predictions of rows of a model with prompts of their own, and how many rows its ControlNets answered."""

    def __init__(self, model: str) -> None:
        self._model, self._checkpoint, canvas = model, open_folder(model), Canvas(128, 128)
        encoder = self._checkpoint.load_text_encoder(Placement())
        self._network = self._checkpoint.load_denoiser(Placement())
        canvas_told = self._checkpoint.size_tensors(SizeConditioning(canvas, canvas))
        self._told = [encoder.encode(f"prompt {row}").joined(canvas_told) for row in range(5)]
        self._level = sigma_schedule(self._checkpoint.noise_schedule(canvas, 4), "simple", 4)[1]
        self._x = torch.randn(5, 4, 16, 16, generator=torch.Generator().manual_seed(5)) * 3
        self._pictures = torch.randint(0, 256, (2, 128, 128, 3), generator=torch.Generator().manual_seed(6)).byte()
        self._loaded: dict[str, Any] = {}
        self.answered: list[int] = []

    def source(self, name: str, picture: int) -> ControlSource:
        """What a control of the model finds in one of two pictures."""
        if name not in self._loaded:
            files = find_files(name, Path(f"{self._model}-{name}"), os.path.realpath, "controls.0.file")
            loaded = self._checkpoint.open_control(files).load(Placement())
            loaded.network.register_forward_pre_hook(lambda _, read: self.answered.append(len(read[0])))
            self._loaded[name] = loaded
        return self._loaded[name].source(self._pictures[picture])

    def __call__(self, rows: list[int], adapters: list[RowAdapters]) -> Tensor:
        """Of some rows, in one forward."""
        told = stack([self._told[row] for row in rows])
        return self._network(self._x[rows], [self._level] * len(rows), told, adapters)


@pytest.mark.parametrize("model", MODELS)
def test_rows_of_one_forward_have_controls_of_their_own(model: str) -> None:
    """The bar: to 1e-5 what separate forwards answer, and each ControlNet answers those rows that have it."""
    answers = Answers(model)
    a, again, b, t = (answers.source(*of) for of in (("a", 0), ("a", 1), ("b", 1), ("t", 0)))
    lora = combined(
        [(opened(model, save_lora(tiny_lora(model, 1).peft(), "a.safetensors")).read("denoiser")[0], 0.7)],
        "cpu",
        torch.float32,
    )
    rows = [
        RowAdapters(),
        RowAdapters(controls=(RowControl(a, 0.7),)),
        RowAdapters(lora, (RowControl(a, 0.4), RowControl(again, 1.1), RowControl(b, 1.0))),
        RowAdapters(controls=(RowControl(t, 0.9),)),
        RowAdapters(controls=(RowControl(t, 0.5), RowControl(b, 0.6))),
    ]
    answers.answered.clear()
    together = answers([0, 1, 2, 3, 4], rows)
    # `a` for two rows, once more for its second picture on one of them, and `b` for two; `t` was asked before.
    assert sorted(answers.answered) == [1, 2, 2]
    plain = answers([0, 1, 2, 3, 4], [RowAdapters()] * 5)
    for row, own in enumerate(rows):
        torch.testing.assert_close(together[row], answers([row], [own])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(together[0], plain[0], atol=1e-5, rtol=0)
    assert all((plain[row] - together[row]).abs().max() > 0.02 for row in (1, 2, 3, 4))


@pytest.mark.parametrize("name", ["a", "t"])
def test_what_is_added_is_proportional_to_the_strength(name: str) -> None:
    answers = Answers("sd")
    source = answers.source(name, 0)
    half = answers([0], [RowAdapters(controls=(RowControl(source, 0.5),))])
    twice_a_quarter = answers([0], [RowAdapters(controls=(RowControl(source, 0.25),) * 2)])
    torch.testing.assert_close(half, twice_a_quarter, atol=1e-5, rtol=0)
    none = answers([0], [RowAdapters(controls=(RowControl(source, 0.0),))])
    torch.testing.assert_close(none, answers([0], [RowAdapters()]), atol=1e-5, rtol=0)


def test_the_network_is_left_as_it_was() -> None:
    answers = Answers("sd")
    before = answers([0, 1], [RowAdapters()] * 2)
    answers([0, 1], [RowAdapters(controls=(RowControl(answers.source("t", 0), 1.0),)), RowAdapters()])
    once = answers([0], [RowAdapters(controls=(RowControl(answers.source("t", 0), 1.0),))])
    again = answers([0], [RowAdapters(controls=(RowControl(answers.source("t", 0), 1.0),))])
    assert torch.equal(once, again), "the UNet adds the maps in place: they are copies"
    assert torch.equal(answers([0, 1], [RowAdapters()] * 2), before)
