"""One forward per model over the distinct rows; split when it must be, with the same answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.whole_model import embedded_model
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext, evaluate
from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance, PromptKey, Request
from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS, Conditioning
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers import DenoisedPrediction, DenoiseRequest
from tests.problems import GaussianData, conditionings

LEVEL = Level(1.0, 2.0)
WORDS = {name: torch.full((1, 1, 1), float(i)) for i, name in enumerate(["", "a", "b", "c"])}


class Counted(GaussianData):
    """Remembers the sizes of its forwards; out of memory above `room` rows."""

    def __init__(self, room: int = 1000) -> None:
        super().__init__()
        self.room, self.sizes, self.refused = room, list[int](), 0

    def __call__(
        self, x: Tensor, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Tensor:
        if len(x) > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("no room")
        self.sizes.append(len(x))
        return super().__call__(x, levels, conditioning) + conditioning[PROMPT_EMBEDS][:, :, :, None]


def asked(x: Tensor, *guidances: ClassifierFreeGuidance) -> list[Request]:
    return [Request(DenoiseRequest(x, LEVEL), guidance) for guidance in guidances]


THREE = [ClassifierFreeGuidance(3.0, name, "") for name in "abc"]


def test_shared_rows_are_evaluated_once() -> None:
    network, x = Counted(), torch.randn(2, 4, 3, 3)
    answers, count = evaluate(asked(x, *THREE), EvaluationContext({"": network}, conditionings(WORDS)))
    assert count == Count(8, 1, shared=4)
    assert network.sizes == [8]
    for guidance, answer in zip(THREE, answers, strict=True):
        (alone,), _ = evaluate(asked(x, guidance), EvaluationContext({"": Counted()}, conditionings(WORDS)))
        torch.testing.assert_close(answer.denoised, alone.denoised, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("most", [1, 2, 3, 8, None])
def test_any_split_gives_the_same_answers(most: int | None) -> None:
    x = torch.randn(2, 4, 3, 3)
    whole, _ = evaluate(asked(x, *THREE), EvaluationContext({"": Counted()}, conditionings(WORDS)))
    network = Counted()
    parts, count = evaluate(asked(x, *THREE), EvaluationContext({"": network}, conditionings(WORDS), most))
    assert count == Count(8, -(-8 // (most or 8)), shared=4)
    assert sum(network.sizes) == 8
    for one, two in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.denoised, two.denoised, rtol=1e-5, atol=1e-6)


def test_without_room_a_forward_is_split() -> None:
    network = Counted(room=3)
    context = EvaluationContext({"": network}, conditionings(WORDS))
    for _ in range(2):
        # The second time it is not tried again.
        network.refused = 0
        _, count = evaluate(asked(torch.randn(2, 4, 3, 3), *THREE), context)
        assert count == Count(8, 4, shared=4)
    assert network.sizes == [2, 2, 2, 2] * 2
    assert network.refused == 0


def test_without_room_for_one_row_it_is_said() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(asked(torch.randn(1, 4, 3, 3), *THREE), EvaluationContext({"": Counted(room=0)}, conditionings(WORDS)))


def test_each_model_gets_its_rows_and_its_own_words() -> None:
    """The same negative prompt is another row to another model."""
    networks = {"one": Counted(), "two": Counted()}
    guidances = [
        ClassifierFreeGuidance(3.0, "a", "", model="one"),
        ClassifierFreeGuidance(3.0, "a", "", model="two"),
        ClassifierFreeGuidance(1.0, "b", ""),
    ]
    guidances[2] = guidances[2]._replace(model="two")
    other = {name: value + 10 for name, value in WORDS.items()}
    told = conditionings(WORDS, "one") | conditionings(other, "two")
    answers, count = evaluate(asked(torch.zeros(1, 1, 1, 1), *guidances), EvaluationContext(networks, told))
    assert [networks[name].sizes for name in networks] == [[2], [3]]
    assert count == Count(5, 2, shared=0)
    first, second, _ = (float(answer.denoised) for answer in answers)
    assert second - first == pytest.approx(10)


def test_a_real_network_in_any_split() -> None:
    """Batched and one by one, the embedded model answers the same but for rounding."""
    model = embedded_model()
    prompts = ["", "a red background", "a blue background"]
    told = {PromptKey("", prompt): model.text_encoder.encode(prompt) for prompt in prompts}
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
    guidances = [ClassifierFreeGuidance(2.0, prompt, "") for prompt in prompts[1:]]
    found: list[list[DenoisedPrediction]] = []
    for most in (None, 1, 2):
        answers, _ = evaluate(asked(x, *guidances), EvaluationContext({"": model.denoiser}, told, most))
        found.append(answers)
    for others in found[1:]:
        for one, two in zip(found[0], others, strict=True):
            difference = (one.denoised - two.denoised).abs().max() / one.denoised.abs().max()
            assert float(difference) < 1e-5
