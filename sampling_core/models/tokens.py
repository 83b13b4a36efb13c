"""Prompts as a model's tokenizer reads them: how many tokens, and where the model stops reading. No weights, and
not transformers, whose import takes seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from sampling_core.models import EMBEDDED

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How CLIP's tokenizer takes a text apart before it spells the parts (Radford et al. 2021, as in transformers)."""
_BEGIN_AND_END = 2
"""Tokens that are put around each prompt."""


@dataclass(frozen=True)
class Reading:
    """A prompt's tokens, begin and end not counted; the model reads `most` of them, which is the text up to `end`."""

    tokens: int
    most: int
    end: int


def reading(folder: Path, prompt: str) -> Reading | None:
    """How the model in a folder reads a prompt; None if its tokenizer says no limit, or cannot be read."""
    found = _tokenizer(folder)
    if found is None:
        return None
    tokenizer, most = found
    spans = tokenizer.encode(prompt, add_special_tokens=False).offsets
    return Reading(len(spans), most, spans[most - 1][1] if len(spans) > most else len(prompt))


def unknown_words(folder: Path, prompt: str) -> list[str]:
    """Words of a prompt, each once, that were not in the captions of the embedded model; none for other models."""
    found = _tokenizer(folder) if folder == EMBEDDED else None
    if found is None:
        return []
    # Of the letters, which are there to spell what is not known, captions have only the article.
    known = {token.removesuffix("</w>") for token in found[0].get_vocab() if token.endswith("</w>")}
    known = {word for word in known if len(word) > 1 or word == "a"}
    pre, text = found[0].pre_tokenizer, found[0].normalizer.normalize_str(prompt)
    words = [text[first:last] for _, (first, last) in pre.pre_tokenize_str(text)]
    return list(dict.fromkeys(word for word in words if word.isalnum() and word not in known))


@lru_cache(maxsize=8)
def _tokenizer(folder: Path) -> tuple[Tokenizer, int] | None:
    """The tokenizer of a model folder, built as transformers' CLIPTokenizer is, and the most tokens of a prompt."""
    files = folder / "tokenizer"
    try:
        config = json.loads((files / "tokenizer_config.json").read_text("utf-8"))
        most = int(config["model_max_length"]) - _BEGIN_AND_END
        vocabulary, merges = _vocabulary(files)
        unknown = config.get("unk_token", "<|endoftext|>")
        unknown = unknown["content"] if isinstance(unknown, dict) else unknown
        model = BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=str(unknown))
    except Exception:  # noqa: BLE001 - whatever is wrong, loading the model says it
        return None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return (tokenizer, most) if most > 0 else None


def _vocabulary(files: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens with their numbers, and the pairs that are merged, most frequent first."""
    if (files / "tokenizer.json").is_file():
        model: dict[str, Any] = json.loads((files / "tokenizer.json").read_text("utf-8"))["model"]
        vocabulary, pairs = model["vocab"], model["merges"]
    else:
        vocabulary = json.loads((files / "vocab.json").read_text("utf-8"))
        lines = (files / "merges.txt").read_text("utf-8").split("\n")
        pairs = [line for line in lines if line and not line.startswith("#version")]
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs]
    return vocabulary, [(left, right) for left, right in merges]
