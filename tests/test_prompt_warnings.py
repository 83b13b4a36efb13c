"""Prompts that a model does not read to their end, and words that the embedded one does not know."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.beta_unet_folder import BetaUNetFolder
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from training.scenes import all_scenes

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
KNOWN = "a red striped circle on a blue background"
EMBEDDED_MODEL = open_folder("embedded")
assert isinstance(EMBEDDED_MODEL, BetaUNetFolder)
READER = EMBEDDED_MODEL.tokenizers[0]
TOKENIZER = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")


def warned(*regions: dict[str, Any], **fields: Any) -> list[str]:
    job = {"prompt": KNOWN, "regions": [{"prompt": KNOWN, "mask": LEFT} | region for region in regions]}
    return prepare(parse_job(job | fields)).warnings()


@given(
    prompt=st.text(max_size=60) | st.lists(st.sampled_from(["a", "red", "it's", "3d", "Ünder", "漢字"])).map(" ".join)
)
def test_tokens_are_counted_as_the_models_tokenizer_counts(prompt: str) -> None:
    read = READER.reading(prompt)
    assert read.tokens == len(TOKENIZER(prompt, add_special_tokens=False)["input_ids"])
    length = TOKENIZER.model_max_length
    expected = TOKENIZER(prompt, padding="max_length", max_length=length, truncation=True)["input_ids"]
    assert READER.ids(prompt) == expected
    assert read.most == TOKENIZER.model_max_length - 2
    if read.tokens > read.most:
        spans = TOKENIZER(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert read.end == spans[read.most - 1][1]


def test_every_prompt_that_is_too_long_is_told_with_its_field() -> None:
    """18 tokens are read; 9 words and 13 more are 22."""
    long = f"a {KNOWN} " + "red " * 13
    says = '22 tokens; the model reads the first 18, up to "... red red red red red red", and ignores the rest'
    assert warned({"prompt": long}) == [f"regions.0.prompt: {says}"]
    assert warned({"negative_prompt": long}, prompt=long) == [
        f"prompt: {says}",
        f"regions.0.negative_prompt: {says}",
    ]
    assert warned({}, negative_prompt=long) == [f"negative_prompt: {says}"]
    # Nobody reads it.
    assert warned({}, negative_prompt=long, cfg=1.0) == []


def test_words_that_the_embedded_model_does_not_know() -> None:
    says = "the embedded model does not know"
    assert warned({"prompt": "A red circle, on a GREEN background."}) == []
    assert warned({"prompt": "a photo of a castle"}, negative_prompt="fog") == [
        f"negative_prompt: {says} 1 word: fog",
        f"regions.0.prompt: {says} 3 words: photo, of, castle",
    ]
    assert warned(prompt=" ".join(f"w{i}" for i in "abcdefghijkl"))[-1].endswith(
        f"{says} 12 words: wa, wb, wc, wd, we, wf, wg, wh, wi, wj, ..."
    )


def test_every_caption_is_known() -> None:
    captions = {scene.caption for scene in all_scenes()}
    assert not [caption for caption in captions if READER.unknown_words(caption)]
    for letters in ("b", "7", "backg", "ed"):
        assert READER.unknown_words(letters) == [letters]


def test_another_model_has_its_own_length_and_its_own_words(workdir: Path) -> None:
    """Its tokenizer may come as vocab.json and merges.txt alone, as that of Stable Diffusion 1.5 does."""
    shutil.copytree(EMBEDDED, "other")
    Path("other/tokenizer/tokenizer.json").unlink()
    file = Path("other/tokenizer/tokenizer_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 7}))
    assert warned({"prompt": "a red photo", "model": "other"}) == [
        'regions.0.prompt: 7 tokens; the model reads the first 5, up to "... a red pho", and ignores the rest',
    ]


@pytest.mark.parametrize("damage", ["tokenizer_config.json", "tokenizer.json"])
def test_a_tokenizer_that_cannot_be_read_is_refused(damage: str, workdir: Path) -> None:
    shutil.copytree(EMBEDDED, "other")
    Path(f"other/tokenizer/{damage}").write_text("{")
    with pytest.raises(ModelError, match=f"tokenizer/{damage}"):
        warned({"prompt": "red", "model": "other"})


def test_encoding_a_long_prompt_says_nothing_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """The libraries' warnings name no field, and come when a card is already paid for."""
    text_encoder = open_folder("embedded").load_text_encoder(Placement())
    libraries = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    for library in libraries:
        library.addHandler(caplog.handler)
    try:
        assert len(text_encoder.encode("red " * 40)["prompt_embeds"]) == 1
    finally:
        for library in libraries:
            library.removeHandler(caplog.handler)
    assert caplog.records == []
