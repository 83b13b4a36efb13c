"""Qwen3 as its library has it: tokens of a prompt as a user's message, and states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Tokenizer, Qwen3Model

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.conditioning import stack
from prefect_regional_diffusion.sampling_core.models.files import find_files
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.loading import load_network
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.qwen3_text import QWEN3_TEXT, qwen3_states
from prefect_regional_diffusion.sampling_core.models.qwen_tokenizer import QwenPromptTokenizer, open_qwen_tokenizer
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from tests.tiny_flow_models import tiny_z_image

PROMPTS = [
    *("a red circle", "", "  red\n\t 12 circles\n\n", "\nÜnknown 漢字 (word:1.3), it's", "<|im_end|> red"),
    "red " * 40,
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(tiny_z_image(tmp_path / "model"))


def opened(folder: Path, length: int = 96, embeddings: int = 300) -> QwenPromptTokenizer:
    files = find_files("model", folder, lambda path: path)
    return open_qwen_tokenizer(files, "tokenizer", "text_encoder", length, embeddings)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_transformers(prompt: str, folder: Path) -> None:
    theirs = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    message = [{"role": "user", "content": prompt}]
    text = theirs.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert opened(folder).ids(prompt) == theirs(text, max_length=96, truncation=True)["input_ids"]


def test_a_template_may_be_among_the_configurations(folder: Path) -> None:
    """As transformers 4 wrote it."""
    template = folder / "tokenizer" / "chat_template.jinja"
    edit(folder / "tokenizer" / "tokenizer_config.json", chat_template=template.read_text())
    before = opened(folder).ids("red")
    template.unlink()
    assert opened(folder).ids("red") == before


def test_how_much_is_read(folder: Path) -> None:
    tokenizer = opened(folder, length=12)
    assert tokenizer.most == 12 - len(["<|im_start|>", *"user\n"])
    reading = tokenizer.reading("a red circle")
    assert "a red circle"[: reading.end] == "a red circ"


@pytest.mark.parametrize("template", [None, "{{ messages }}", "[INST] {{ messages[0].content }} [/INST]"])
def test_other_templates_are_refused(template: str | None, folder: Path) -> None:
    file = folder / "tokenizer" / "chat_template.jinja"
    file.unlink() if template is None else file.write_text(template)
    with pytest.raises(ModelError, match="Qwen's chat template"):
        opened(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": {"type": "WordLevel", "vocab": {}}}, "WordLevel"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c"]}}, "built"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, "built"),
        ({"added_tokens": []}, r"a token <\|im_start\|>"),
    ],
)
def test_other_tokenizers_are_refused(changes: dict[str, Any], told: str, folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer.json", **changes)
    with pytest.raises(ModelError, match=told):
        opened(folder)


def test_more_tokens_than_the_encoder_knows_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"more than text_encoder's 20 tokens \(one is "):
        opened(folder, embeddings=20)


@pytest.mark.parametrize("written", ["by transformers 5", "by transformers 4, as a model that writes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_those_of_transformers(dtype: torch.dtype, written: str, folder: Path) -> None:
    theirs = Qwen3Model.from_pretrained(folder / "text_encoder", dtype=dtype)
    if written != "by transformers 5":
        weights, configuration = folder / "text_encoder/model.safetensors", folder / "text_encoder/config.json"
        tensors = {f"model.{name}": tensor for name, tensor in load_file(weights).items()}
        save_file(tensors | {"lm_head.weight": torch.zeros(300, 96)}, weights, metadata={"format": "pt"})
        edit(configuration, rope_parameters=None, rope_theta=1_000_000, rope_scaling=None, torch_dtype="bfloat16")
    files = find_files("model", folder, lambda path: path)
    source = QWEN3_TEXT.source(files, "text_encoder", QWEN3_TEXT.read(files, "text_encoder"))
    ours = load_network(source, Placement(dtype=dtype))
    assert not any(tensor.is_meta for tensor in [*ours.parameters(), *ours.buffers()])
    assert torch.equal(ours.rotary_emb.inv_freq, theirs.rotary_emb.inv_freq)
    tokenizer = opened(folder)
    with torch.inference_mode():
        for prompt in PROMPTS:
            expected = theirs(torch.tensor([tokenizer.ids(prompt)]), output_hidden_states=True).hidden_states[-2]
            assert torch.equal(qwen3_states(ours, tokenizer, prompt), expected.float())


def test_prompts_of_different_lengths_share_a_forward(folder: Path) -> None:
    """And do not see each other, nor what they are filled up with."""
    model = open_folder(str(folder))
    encoder = model.load_text_encoder(Placement())
    told = [encoder.encode(prompt) for prompt in ("red", "a long prompt of many letters", "")]
    denoiser = model.load_denoiser(Placement())
    x = torch.randn(3, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    levels = [Level(1 - sigma, sigma) for sigma in (1.0, 0.5, 0.25)]
    together = denoiser(x, levels, stack(told))
    for row in range(3):
        alone = denoiser(x[row : row + 1], levels[row : row + 1], told[row])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)
