"""The embedded model's vocabulary as a CLIP tokenizer folder: every known word is one token."""

from __future__ import annotations

import json
import string
from pathlib import Path

from transformers import CLIPTokenizer

MAX_TOKENS = 20


def byte_pairs(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges that spell each word letter by letter; other words stay letters."""
    letters = list(string.ascii_lowercase)
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            if left not in vocabulary:
                vocabulary.append(left)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(vocabulary)}, merges


def new_tokenizer(words: list[str], folder: Path) -> CLIPTokenizer:
    """Write vocab.json and merges.txt for `words` into `folder` and load them back."""
    vocabulary, merges = byte_pairs(words)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=MAX_TOKENS
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
