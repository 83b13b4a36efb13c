"""Several prompts in one row: each place attends to its own, and no other row of the forward is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import linear

from prefect_regional_diffusion.sampling_core.models.conditioning import (
    GUIDANCE,
    POOLED_PROMPT_EMBEDS,
    PROMPT_EMBEDS,
    Conditioning,
    stack,
)
from prefect_regional_diffusion.sampling_core.models.cross_attention_rows import attending_to_prompts, on_grid
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Denoiser, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.joint_attention_rows import joined_prompts
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.prompt_rows import RowPrompt
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from tests.tiny_flow_models import tiny_flux, tiny_sd3
from tests.tiny_models import tiny_sd, tiny_sdxl

UNETS: dict[str, Callable[[Path], str]] = {"sd": tiny_sd, "xl": tiny_sdxl}
TRANSFORMERS: dict[str, Callable[[Path], str]] = {
    "sd3": tiny_sd3,
    "sd3 without T5": partial(tiny_sd3, t5=False),
    "sd3.5": partial(tiny_sd3, of_35=True),
    "flux dev": tiny_flux,
    "flux schnell": partial(tiny_flux, schnell=True),
}
MODELS = UNETS | TRANSFORMERS
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
        canvas, facts = Canvas(128, 128), self.checkpoint.facts
        beside = self.checkpoint.size_tensors(SizeConditioning(canvas, canvas))
        if facts.guidance == "embedded":
            beside = Conditioning({GUIDANCE: torch.tensor([3.5])})
        conditioning = stack([row[0].conditioning.joined(beside) for row in rows])
        x = torch.cat([noise(100, 1, facts.latent_channels, 16, 16) for _ in rows])
        adapters = [RowAdapters(prompts=tuple(row) if len(row) > 1 else ()) for row in rows]
        levels = [Level(0.3, 0.7) if facts.prediction_type == "flow" else Level(1.0, 3.0)] * len(rows)
        return self.network(x, levels, conditioning, *([adapters] if any(map(any, adapters)) else []))

    def row(self, *shares: tuple[Conditioning, Tensor]) -> list[RowPrompt]:
        return [RowPrompt(*share) for share in shares]


@pytest.fixture(params=MODELS, scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(request.param, tmp_path_factory.mktemp("models"))


def test_a_layer_of_joint_attention_answers_by_its_prompts() -> None:
    """Written out: each token's softmax over what it attends to, with the weight of each prompt at the picture's."""
    left = torch.zeros(4, 4)
    left[:, 0] = 1  # half of the first of two tokens in each row
    prompts = [RowPrompt(Conditioning({PROMPT_EMBEDS: noise(i, 1, 3, 8)}), w) for i, w in ((1, 1 - left), (2, left))]
    own = torch.cat([prompts[0].conditioning[PROMPT_EMBEDS], noise(3, 1, 3, 8)])
    joined = joined_prompts(own, [prompts, ()], 2, 4)
    assert joined.bias is not None
    assert joined.tokens.shape == (2, 6, 8)
    shares = torch.tensor([[0.5, 1.0, 0.5, 1.0], [0.5, 0.0, 0.5, 0.0]])
    counts = torch.zeros(10, 10)  # how often a token counts for another
    for prompt, share in enumerate(shares):
        span = slice(3 * prompt, 3 * prompt + 3)
        counts[span, span] = 1
        counts[span, 6:] = share
        counts[6:, span] = share[:, None]
    counts[6:, 6:] = 1
    torch.testing.assert_close(joined.bias[0, 0].exp(), counts)
    alone = torch.zeros(10, 10)
    kept = [0, 1, 2, 6, 7, 8, 9]
    alone[torch.tensor(kept)[:, None], kept] = 1
    alone[3:6, 3:6] = 1
    assert torch.equal(joined.bias[1, 0].exp(), alone), "what fills a row up is seen by itself alone"
    swapped = joined.picture_first
    assert swapped is not None
    assert torch.equal(swapped[0, 0, 4:, :4], joined.bias[0, 0, :6, 6:])


EVERYWHERE = torch.ones(16, 16)


def test_rows_with_any_number_of_prompts_share_a_forward(model: Model) -> None:
    """Each answers as in a forward of its own, with prompts of one chunk and, where there are such, of two."""
    chunks = 2 if model.checkpoint.facts.repeatable else 1
    a, b, c = model.prompt(1), model.prompt(2, chunks), model.prompt(3)
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


def test_a_prompt_that_has_the_canvas_is_answered_as_if_it_were_alone(model: Model) -> None:
    a, b, c = model.prompt(1), model.prompt(2), model.prompt(3)
    plain = model.answers(model.row((a, EVERYWHERE)))
    for row in (
        model.row((b, 0 * SOFT), (a, EVERYWHERE)),
        model.row((b, 0 * SOFT), (a, EVERYWHERE), (c, 0 * SOFT)),
    ):
        torch.testing.assert_close(model.answers(row), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", UNETS)
def test_equal_prompts_are_one_prompt(kind: str, tmp_path: Path) -> None:
    """Of transformers they are made one before: there, the tokens of a prompt see the picture where it counts."""
    model = Model(kind, tmp_path)
    a, twin = model.prompt(1), model.prompt(1)
    equal = model.answers(model.row((a, 1 - SOFT), (twin, SOFT)))
    torch.testing.assert_close(equal, model.answers(model.row((a, EVERYWHERE))), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", UNETS)
def test_a_prompt_that_is_read_twice_is_the_prompt(kind: str, tmp_path: Path) -> None:
    """Tokens of a UNet may be repeated, so prompts of different lengths need no padding."""
    model = Model(kind, tmp_path)
    a, b = model.prompt(1), model.prompt(2)
    doubled = {
        name: torch.cat([tensor] * 2, dim=1) if name == PROMPT_EMBEDS else tensor for name, tensor in b.tensors.items()
    }
    once = model.answers(model.row((a, 1 - LEFT), (b, LEFT)))
    twice = model.answers(model.row((a, 1 - LEFT), (Conditioning(doubled, b.repeatable), LEFT)))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-5)


def test_whole_prompts_count_by_their_area(model: Model) -> None:
    """The pooled vector of a row is the mean of its prompts'."""
    if POOLED_PROMPT_EMBEDS not in model.checkpoint.conditioning_specs:
        return
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
