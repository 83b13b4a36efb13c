"""Several prompts in one row of a UNet: each place attends to its own, and no other row of the forward is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import linear

from prefect_regional_diffusion.sampling_core.models.conditioning import (
    POOLED_PROMPT_EMBEDS,
    PROMPT_EMBEDS,
    Conditioning,
    stack,
)
from prefect_regional_diffusion.sampling_core.models.families.stable_diffusion import StableDiffusion
from prefect_regional_diffusion.sampling_core.models.families.stable_diffusion_xl import StableDiffusionXL
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Denoiser, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.prompt_rows import RowPrompt, attending_to_prompts, on_grid
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from tests.tiny_models import tiny_sd, tiny_sdxl

MODELS: dict[str, Callable[[Path], str]] = {"sd": tiny_sd, "xl": tiny_sdxl}
LEFT = torch.zeros(16, 16)
LEFT[:, :8] = 1
SOFT = torch.linspace(0, 1, 16).expand(16, 16)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_layer_answers_each_place_by_its_prompts() -> None:
    """Written out: a softmax for each prompt, and the sum of the answers by the weights of the place."""
    torch.manual_seed(1)
    layer = Attention(query_dim=12, cross_attention_dim=10, heads=2, dim_head=6)
    queries, own, other = noise(1, 3, 16, 12), noise(2, 3, 5, 10), noise(3, 1, 7, 10)
    weight = torch.zeros(8, 8)
    weight[:, :3] = 1  # a fourth of the second column of the layer's 4 x 4 places has half
    prompts = [
        RowPrompt(Conditioning({PROMPT_EMBEDS: own[1:2]}), 1 - weight),
        RowPrompt(Conditioning({PROMPT_EMBEDS: other}), weight),
    ]
    with torch.inference_mode():
        with attending_to_prompts(nn.ModuleList([layer]), [(), prompts, ()], own) as tokens:
            mixed = layer(queries, encoder_hidden_states=tokens)

        matrices = dict(layer.named_parameters())

        def attention(x: Tensor, text: Tensor) -> Tensor:
            """[16, 12] before the last matrix."""
            heads = [matrices[f"to_{name}.weight"].unflatten(0, (2, 6)) for name in "qkv"]
            answers: list[Tensor] = []
            for head in range(2):
                query, key, value = x @ heads[0][head].T, text @ heads[1][head].T, text @ heads[2][head].T
                answers.append(torch.softmax(query @ key.T / 6**0.5, dim=1) @ value)
            return torch.cat(answers, dim=1)

        shares = torch.tensor([1.0, 0.5, 0.0, 0.0]).repeat(4)[:, None]

        def last(x: Tensor) -> Tensor:
            return linear(x, matrices["to_out.0.weight"], matrices["to_out.0.bias"])

        expected = (1 - shares) * attention(queries[1], own[1]) + shares * attention(queries[1], other[0])
        torch.testing.assert_close(mixed[1], last(expected), rtol=0, atol=1e-6)
        for row in (0, 2):
            alone = layer(queries[row : row + 1], encoder_hidden_states=own[row : row + 1])
            torch.testing.assert_close(mixed[row : row + 1], alone, rtol=0, atol=1e-6)
        after = layer(queries, encoder_hidden_states=own)
    torch.testing.assert_close(after[1], last(attention(queries[1], own[1])), rtol=0, atol=1e-6)


def test_weights_are_averaged_over_the_cells_of_a_place() -> None:
    weights = noise(4, 2, 5, 7).abs()
    grid = on_grid(weights, 3 * 4).unflatten(1, (3, 4))
    assert grid[0, 0, 0] == pytest.approx(float(weights[0, :2, :2].mean()))
    assert grid[1, 2, 3] == pytest.approx(float(weights[1, 4, 6])), "beyond an odd edge there is nothing"
    assert torch.equal(on_grid(weights, 35), weights.flatten(1))
    with pytest.raises(ValueError, match="a layer of 13 places"):
        on_grid(weights, 13)


class Model:
    """A denoiser, and prompts for it."""

    def __init__(self, kind: str, folder: Path) -> None:
        checkpoint = open_folder(MODELS[kind](folder / kind))
        assert isinstance(checkpoint, StableDiffusion | StableDiffusionXL)
        self.checkpoint = checkpoint
        self.network: Denoiser = checkpoint.load_denoiser(Placement())

    def prompt(self, seed: int, chunks: int = 1) -> Conditioning:
        specs = self.checkpoint.conditioning_specs
        shapes = {name: [int(str(size)) for size in spec.shape] for name, spec in specs.items()}
        shapes[PROMPT_EMBEDS][1] *= chunks
        tensors = {name: noise(seed, *shape) for name, shape in shapes.items()}
        return Conditioning(tensors, self.checkpoint.facts.repeatable)

    def answers(self, *rows: Sequence[RowPrompt]) -> Tensor:
        """Of rows of prompts, each with a latent that its place gives."""
        canvas = Canvas(128, 128)
        sizes = self.checkpoint.size_tensors(SizeConditioning(canvas, canvas))
        conditioning = stack([row[0].conditioning.joined(sizes) for row in rows])
        x = torch.cat([noise(100, 1, 4, 16, 16) for _ in rows])
        adapters = [RowAdapters(prompts=tuple(row) if len(row) > 1 else ()) for row in rows]
        levels = [Level(1.0, 3.0)] * len(rows)
        return self.network(x, levels, conditioning, *([adapters] if any(map(any, adapters)) else []))

    def row(self, *shares: tuple[Conditioning, Tensor]) -> list[RowPrompt]:
        return [RowPrompt(*share) for share in shares]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return Model(request.param, tmp_path)


EVERYWHERE = torch.ones(16, 16)


def test_rows_with_any_number_of_prompts_share_a_forward(model: Model) -> None:
    """Each answers as in a forward of its own, with prompts of one chunk and of two."""
    a, b, c = model.prompt(1), model.prompt(2, chunks=2), model.prompt(3)
    rows = [
        model.row((a, EVERYWHERE)),
        model.row((a, 1 - LEFT), (b, LEFT)),
        model.row((c, 1 - LEFT), (a, LEFT * (1 - SOFT)), (b, LEFT * SOFT)),
        model.row((b, EVERYWHERE)),
    ]
    together = model.answers(*rows)
    for row, answer in zip(rows, together, strict=True):
        torch.testing.assert_close(answer, model.answers(row)[0], rtol=0, atol=1e-5)
    assert float((together[0] - together[1]).abs().max()) > 1e-2, "prompts matter"


def test_equal_prompts_and_prompts_without_weight_are_one_prompt(model: Model) -> None:
    a, twin, b = model.prompt(1), model.prompt(1), model.prompt(2)
    plain = model.answers(model.row((a, EVERYWHERE)))
    equal = model.answers(model.row((a, 1 - SOFT), (twin, SOFT)))
    alone = model.answers(model.row((b, 0 * SOFT), (a, EVERYWHERE)))
    torch.testing.assert_close(equal, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, plain, rtol=0, atol=1e-5)


def test_a_prompt_that_is_read_twice_is_the_prompt(model: Model) -> None:
    """Tokens of a UNet may be repeated, so prompts of different lengths need no padding."""
    a, b = model.prompt(1), model.prompt(2)
    doubled = {
        name: torch.cat([tensor] * 2, dim=1) if name == PROMPT_EMBEDS else tensor for name, tensor in b.tensors.items()
    }
    once = model.answers(model.row((a, 1 - LEFT), (b, LEFT)))
    twice = model.answers(model.row((a, 1 - LEFT), (Conditioning(doubled, b.repeatable), LEFT)))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-5)


def test_whole_prompts_count_by_their_area(tmp_path: Path) -> None:
    """The pooled vector of a row is the mean of its prompts'."""
    model = Model("xl", tmp_path)
    a, b = model.prompt(1), model.prompt(2)

    def with_pooled(prompt: Conditioning, vector: Tensor) -> Conditioning:
        return Conditioning({**prompt.tensors, POOLED_PROMPT_EMBEDS: vector}, prompt.repeatable)

    mean = 0.75 * a[POOLED_PROMPT_EMBEDS] + 0.25 * b[POOLED_PROMPT_EMBEDS]
    corner = torch.zeros(16, 16)
    corner[:8, :8] = 1
    shared = model.answers(model.row((a, 1 - corner), (b, corner)))
    told = model.answers(model.row((with_pooled(a, mean), 1 - corner), (with_pooled(b, mean), corner)))
    torch.testing.assert_close(shared, told, rtol=0, atol=1e-5)
    assert (
        float((shared - model.answers(model.row((a, 1 - corner), (with_pooled(b, 0 * mean), corner)))).abs().max())
        > 1e-3
    )
