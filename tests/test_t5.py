"""T5 as its library has it: tokens, and states."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5EncoderModel, T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.files import find_files
from prefect_regional_diffusion.sampling_core.models.loading import load_network
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.t5_text import T5_TEXT, t5_states
from prefect_regional_diffusion.sampling_core.models.t5_tokenizer import T5PromptTokenizer, open_t5_tokenizer
from tests.tiny_flow_models import t5_encoder, t5_tokenizer

PROMPTS = ["a red circle", "", "  red\n\t circled  ", "Ünknown 漢字 (word:1.3)", "</s> <pad>red</s>", "red " * 40]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    t5_tokenizer().save_pretrained(tmp_path / "tokenizer")
    t5_encoder(32, 2).save_pretrained(tmp_path / "encoder")
    return tmp_path


def opened(folder: Path, length: int = 24, embeddings: int = 64) -> T5PromptTokenizer:
    files = find_files("model", folder, lambda path: path)
    return open_t5_tokenizer(files, "tokenizer", "encoder", length, embeddings)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_transformers(prompt: str, folder: Path) -> None:
    theirs = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    expected = theirs(prompt, padding="max_length", max_length=24, truncation=True)["input_ids"]
    assert opened(folder).ids(prompt) == expected


def test_tokens_to_fill_in_are_found(folder: Path) -> None:
    """As in the files of T5: a hundred tokens after the pieces of words."""
    (folder / "tokenizer" / "tokenizer.json").unlink()
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)]
    extra = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
    theirs = T5TokenizerFast(vocab=[*vocabulary, *extra])
    theirs.save_pretrained(folder / "tokenizer")
    prompt = "a <extra_id_7> aa<extra_id_99>"
    assert opened(folder, 12, 105).ids(prompt) == theirs(prompt, padding="max_length", max_length=12)["input_ids"]


def test_tokens_without_an_embedding_are_text(folder: Path) -> None:
    """transformers adds a hundred tokens to every tokenizer that is not told otherwise, and counts on nobody."""
    edit(folder / "tokenizer" / "tokenizer_config.json", extra_ids=100)
    plain = opened(folder).ids("a <extra_id_7>")
    assert max(plain) < 64
    assert plain != opened(folder).ids("a")


def test_how_much_is_read(folder: Path) -> None:
    tokenizer = opened(folder, length=3)
    reading = tokenizer.reading("a red circle")
    assert (reading.tokens, reading.most) == (4, 2)
    assert "a red circle"[: reading.end] == "a red"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "%%"}}, "not base64"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"x").decode()}}, "built"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "model"),
        ({"model": {"type": "Unigram", "vocab": [[1.0, "a"]] * 4, "unk_id": 2}}, "built"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "at least 3 items"),
    ],
)
def test_other_tokenizers_are_refused(changes: dict[str, Any], told: str, folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer.json", **changes)
    with pytest.raises(ModelError, match=told):
        opened(folder)


def test_more_tokens_than_the_encoder_knows_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"more than encoder's 20 tokens \(one is "):
        opened(folder, embeddings=20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_are_those_of_transformers(dtype: torch.dtype, folder: Path) -> None:
    """The library keeps some layers wide where float16 would overflow."""
    files = find_files("model", folder, lambda path: path)
    ours = load_network(T5_TEXT.source(files, "encoder", T5_TEXT.read(files, "encoder")), Placement(dtype=dtype))
    theirs = T5EncoderModel.from_pretrained(folder / "encoder", dtype=dtype)
    assert {name: tensor.dtype for name, tensor in ours.state_dict().items()} == {
        name: tensor.dtype for name, tensor in theirs.state_dict().items()
    }
    assert ours.shared.weight.data_ptr() == ours.encoder.embed_tokens.weight.data_ptr()
    tokenizer = opened(folder)
    with torch.inference_mode():
        for prompt in PROMPTS:
            states = t5_states(ours, tokenizer, prompt)
            assert torch.equal(states, theirs(torch.tensor([tokenizer.ids(prompt)]))[0].float())
