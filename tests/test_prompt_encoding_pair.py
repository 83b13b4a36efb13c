"""Stable Diffusion XL's two text encoders read weights, chunks and embeddings as one does, each in its own width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from prefect_regional_diffusion import render
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.textual_inversion import TextualInversion
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.tasks.inputs.path_policy import trust_caller
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.tiny_models import SMALL, tiny_sdxl

MOST = 75
LONG = "abcdefghij " * 8
"""80 tokens: each letter is one."""


class Pair(NamedTuple):
    """The encoders of a folder as transformers loads them, and ours."""

    encoders: list[tuple[Any, Any]]
    ours: Any
    folder: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tiny_sdxl(tmp_path_factory.mktemp("models") / "model")
    classes = [(CLIPTextModel, ""), (CLIPTextModelWithProjection, "_2")]
    encoders = [
        (known.from_pretrained(f"{folder}/text_encoder{number}").eval(), f"{folder}/tokenizer{number}")
        for known, number in classes
    ]
    theirs = [(encoder, CLIPTokenizer.from_pretrained(tokenizer)) for encoder, tokenizer in encoders]
    return Pair(theirs, open_folder(folder).load_text_encoder(Placement()), folder)


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def read(encoder: Any, tokenizer: Any, tokens: Sequence[int]) -> Any:
    row = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id]
    row += [tokenizer.pad_token_id] * (MOST + 2 - len(row))
    with torch.no_grad():
        return encoder(torch.tensor([row]), output_hidden_states=True)


def weighted(states: Tensor, empty: Tensor, weights: Sequence[float]) -> Tensor:
    """ComfyUI's."""
    scale = torch.ones(MOST + 2, 1)
    scale[1 : 1 + len(weights), 0] = torch.tensor(weights)
    return (states - empty) * scale + empty


def kept(states: Tensor, _: Tensor, weights: Sequence[float]) -> Tensor:
    """The web UI's."""
    scaled = weighted(states, torch.zeros_like(states), weights)
    return scaled * states.mean() / scaled.mean()


@pytest.mark.parametrize(("syntax", "weigh"), [("comfyui", weighted), ("a1111", kept)])
def test_weights_and_chunks(
    pair: Pair, syntax: PromptSyntax, weigh: Callable[[Tensor, Tensor, Sequence[float]], Tensor]
) -> None:
    found = pair.ours.encode(f"{LONG}(hat:1.5)", syntax)
    expected: list[Tensor] = []
    for encoder, tokenizer in pair.encoders:
        tokens = [*ids(tokenizer, LONG), *ids(tokenizer, "hat")]
        assert len(tokens) == 83
        empty = read(encoder, tokenizer, []).hidden_states[-2][0]
        first, second = (read(encoder, tokenizer, part).hidden_states[-2][0] for part in (tokens[:75], tokens[75:]))
        weights = [1.0] * 5 + [1.5] * 3
        expected.append(torch.cat([first, weigh(second, empty, weights)]))
        if hasattr(encoder, "text_projection"):
            # Of the first chunk, and without weights.
            pooled = read(encoder, tokenizer, tokens[:75]).text_embeds
            torch.testing.assert_close(found["pooled_prompt_embeds"], pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["prompt_embeds"][0], torch.cat(expected, dim=-1), atol=2e-5, rtol=2e-5)


def test_each_encoder_has_vectors_of_its_own(pair: Pair) -> None:
    """A word's own vectors in its place change nothing; others do."""
    prompt, numbers = "a embedding:hat b", [ids(tokenizer, "hat") for _, tokenizer in pair.encoders]
    tables = [encoder.get_input_embeddings().weight.detach() for encoder, _ in pair.encoders]
    own = TextualInversion(tuple(table[found] for table, found in zip(tables, numbers, strict=True)))
    other = TextualInversion((own.vectors[0], torch.randn(own.vectors[1].shape)))
    expected = pair.ours.encode("a hat b", "comfyui")
    same, changed = (pair.ours.encode(prompt, "comfyui", {"hat": one}) for one in (own, other))
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        torch.testing.assert_close(same[name], expected[name], atol=1e-5, rtol=1e-5)
    width = SMALL.text[0]
    assert torch.equal(changed["prompt_embeds"][..., :width], same["prompt_embeds"][..., :width])
    assert not torch.allclose(changed["prompt_embeds"][..., width:], same["prompt_embeds"][..., width:], atol=1e-2)
    assert not torch.allclose(changed["pooled_prompt_embeds"], same["pooled_prompt_embeds"], atol=1e-3)


def job(pair: Pair, prompt: str, **fields: Any) -> RenderJob:
    size = {"width": 128, "height": 128, "steps": 2, "cfg": 3.0}
    return parse_job({"model": pair.folder, "prompt": prompt, "prompt_syntax": "comfyui"} | size | fields)


def test_jobs_of_several_chunks_with_embeddings(pair: Pair, workdir: Path) -> None:
    loaded_parts.cache_clear()
    first, second = SMALL.text
    save_file({"clip_l": torch.randn(2, first), "clip_g": torch.randn(2, second)}, "hat.safetensors")
    save_file({"emb_params": torch.randn(2, first)}, "old.safetensors")
    drawn = {text: render(job(pair, text)).images[0].tobytes() for text in (LONG, f"{LONG} embedding:hat")}
    assert len(set(drawn.values())) == 2
    with pytest.raises(BadInput) as refused, trust_caller():
        prepare(job(pair, "embedding:old"))
    wanted = f"a file with clip_l of {first} features and clip_g of {second} features (emb_params [2, {first}])"
    assert refused.value.allowed == wanted


def test_an_empty_negative_prompt_is_encoded_where_the_others_encode_it(pair: Pair) -> None:
    """diffusers has zeros in its place."""
    with trust_caller():
        runs = {syntax: prepare(job(pair, "a", prompt_syntax=syntax)).run for syntax in ("plain", "comfyui", "a1111")}
    negatives = {syntax: [key.prompt for key in run.prompts if key.prompt != "a"] for syntax, run in runs.items()}
    assert negatives == {"plain": [None], "comfyui": [""], "a1111": [""]}
