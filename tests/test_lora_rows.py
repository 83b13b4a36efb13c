"""LoRAs: rows of one forward with different ones, equal to separate forwards and to merged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.conditioning import GUIDANCE, Conditioning, stack
from prefect_regional_diffusion.sampling_core.models.family import Canvas, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers, combined
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.schedules import sigma_schedule
from tests.linked_models import link
from tests.tiny_loras import (
    MODELS,
    UNETS,
    lora_models,
    lora_of,
    merged,
    opened,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def models(made: Path, workdir: Path) -> None:
    """Links to the models and their LoRAs."""
    link(made, workdir)


def layers_of(model: str, *weighted: tuple[str, float]) -> LoraLayers:
    """What is added to the denoiser."""
    read = [(opened(model, f"{model}-{name}.safetensors").read("denoiser")[0], strength) for name, strength in weighted]
    return combined(read, "cpu", torch.float32)


class Answers:
    """Denoised predictions of rows of a model, with prompts of their own."""

    def __init__(self, model: str) -> None:
        checkpoint, canvas = open_folder(model), Canvas(128, 128)
        encoder = checkpoint.load_text_encoder(Placement())
        self._network = checkpoint.load_denoiser(Placement())
        beside = checkpoint.size_tensors(SizeConditioning(canvas, canvas))
        if checkpoint.facts.guidance == "embedded":
            beside = beside.joined(Conditioning({GUIDANCE: torch.tensor([3.5])}))
        self._told = [encoder.encode(f"prompt {row}").joined(beside) for row in range(4)]
        self._level = sigma_schedule(checkpoint.noise_schedule(canvas, 4), "simple", 4)[1]
        shape = (4, checkpoint.facts.latent_channels, 16, 16)
        self._x = torch.randn(shape, generator=torch.Generator().manual_seed(5)) * 3

    def __call__(self, rows: list[int], *loras: LoraLayers) -> Tensor:
        """Of some rows, in one forward."""
        told = stack([self._told[row] for row in rows])
        return self._network(self._x[rows], [self._level] * len(rows), told, [RowAdapters(one) for one in loras])


@pytest.mark.parametrize("model", MODELS)
def test_rows_of_one_forward_have_loras_of_their_own(model: str, tmp_path: Path) -> None:
    """The bar: to 1e-5 what separate forwards answer, and what merged weights do."""
    a, b = (lora_of(Path(), model, name) for name in "ab")
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
    assert torch.equal(together[0], plain[0]), "the row without a LoRA"
    assert all((plain[row] - together[row]).abs().max() > 0.01 for row in (1, 2, 3))


def test_the_network_is_left_as_it_was() -> None:
    checkpoint = open_folder("sd")
    denoiser: Any = checkpoint.load_denoiser(Placement())
    weights = {name: tensor.clone() for name, tensor in denoiser._unet.state_dict().items()}
    told = checkpoint.load_text_encoder(Placement()).encode("a prompt")
    level = sigma_schedule(checkpoint.noise_schedule(Canvas(128, 128), 4), "simple", 4)[1]
    x = torch.randn(1, 4, 16, 16)
    before = denoiser(x, [level], told)
    with pytest.raises(KeyError):
        denoiser(x, [level], told, [RowAdapters({"no.such.layer": next(iter(layers_of("sd", ("a", 1.0)).values()))})])
    assert not torch.equal(denoiser(x, [level], told, [RowAdapters(layers_of("sd", ("a", 1.0)))]), before)
    assert torch.equal(denoiser(x, [level], told), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in denoiser._unet.state_dict().items())


@pytest.mark.parametrize("model", MODELS)
def test_text_encoders_read_with_it(model: str, tmp_path: Path) -> None:
    lora = lora_of(Path(), model, "t")
    read = opened(model, f"{model}-t.safetensors").read("text_encoder")
    told = [combined([(layers, 0.6)], "cpu", torch.float32) for layers in read]
    plain = open_folder(model).load_text_encoder(Placement())
    whole = open_folder(merged(model, tmp_path / "merged", (lora, 0.6))).load_text_encoder(Placement())
    several_chunks = f"(some:1.3) words {'and more ' * 50}"
    asked: list[tuple[str, PromptSyntax]] = [("some words", "plain")]
    if model in UNETS:
        asked.append((several_chunks, "comfyui"))
    for prompt, syntax in asked:
        for name, expected in whole.encode(prompt, syntax).tensors.items():
            bar = 1e-5 * max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(plain.encode(prompt, syntax, loras=told)[name], expected, atol=bar, rtol=0)
            if expected.is_floating_point():
                assert (plain.encode(prompt, syntax)[name] - expected).abs().max() > 0.01
