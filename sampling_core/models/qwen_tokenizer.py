"""Qwen's tokenizer: its files, and which tokens it makes of a prompt. Built as in transformers 5, and without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from prefect_regional_diffusion.sampling_core.models.component import Class
from prefect_regional_diffusion.sampling_core.models.configurations import Configuration
from prefect_regional_diffusion.sampling_core.models.family import Reading
from prefect_regional_diffusion.sampling_core.models.files import MOST_TOKENIZER_BYTES, ModelFiles
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import (
    CONFIGURATION,
    TOKENIZER,
    Number,
    TokenizerConfiguration,
    TokenizerJson,
    stated_tokens,
)
from prefect_regional_diffusion.sampling_core.models.tokenizer_library import (
    added_token,
    built,
    check_embeddings,
    reading,
)

QWEN_TOKENIZER = Class("transformers", ("Qwen2Tokenizer", "Qwen2TokenizerFast"))
TEMPLATE = "chat_template.jinja"
QWEN_TOKENIZER_FILES = (TOKENIZER, CONFIGURATION, TEMPLATE)
"""All that are read of a tokenizer's folder."""
BEFORE, AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
"""What the model's chat template puts around a user's message, when an answer is to follow. Templates are programs: of
one that comes with a model, these marks are looked for, and it is not run."""
_MARKS = ("<|im_start|>", "<|im_end|>")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How a text is taken apart before bytes are joined to tokens (Qwen2, as in transformers)."""


class BytePairs(Configuration):
    """The model in a tokenizer.json."""

    ONLY: ClassVar[Mapping[str, object]] = {
        **{"type": "BPE", "end_of_word_suffix": "", "continuing_subword_prefix": "", "ignore_merges": False},
        **{"byte_fallback": False, "fuse_unk": False, "unk_token": None, "dropout": None},
    }

    vocab: Annotated[dict[str, Number], Field(min_length=1)]
    merges: list[str] | list[list[str]]


class TokenizerFile(TokenizerJson):
    """That of Qwen's tokenizer."""

    model: BytePairs
    normalizer: dict[str, Any] | None = None


class QwenTokenizerConfiguration(TokenizerConfiguration):
    NOTES: ClassVar[frozenset[str]] = TokenizerConfiguration.NOTES | {"model_max_length"}

    chat_template: Annotated[str, Field(max_length=2**16)] | None = None


class QwenPromptTokenizer:
    """Qwen's tokenizer; at most `length` tokens are made of a prompt as a user's message."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self.length = length
        self.most = length - len(self._ids(BEFORE))
        """Tokens of a prompt that are read."""

    def ids(self, prompt: str) -> list[int]:
        """What the text encoder is given: as many as there are, without padding."""
        return self._ids(BEFORE + prompt + AFTER)[: self.length]

    def reading(self, prompt: str) -> Reading:
        """How much of a prompt is read."""
        return reading(self._tokenizer, prompt, self.most)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def open_qwen_tokenizer(
    files: ModelFiles, folder: str, encoder: str, length: int, embeddings: int
) -> QwenPromptTokenizer:
    """The tokenizer in a folder, for the text encoder in another one, of so many tokens; prompts have up to `length`.

    Raises ModelError.
    """
    name = f"{folder}/{TOKENIZER}"
    configuration = QwenTokenizerConfiguration.read(files, f"{folder}/{CONFIGURATION}")
    tokenizer_file = TokenizerFile.checked(files.mapping(name, MOST_TOKENIZER_BYTES), files, name)
    template = configuration.chat_template
    if f"{folder}/{TEMPLATE}" in files:
        template = files.read(f"{folder}/{TEMPLATE}", 2**16).decode("utf-8", "replace")
    if template is None or not all(mark in template for mark in _MARKS):
        raise files.error(f"has a {folder} without Qwen's chat template (with {' and '.join(_MARKS)})")
    tokenizer = built(files, folder, lambda: _build_tokenizer(tokenizer_file))
    tokenizer.add_tokens([added_token(token) for token in stated_tokens(configuration, tokenizer_file)])
    numbers = tokenizer.get_vocab()
    missing = [mark for mark in _MARKS if mark not in numbers]
    if missing:
        raise files.error(f"has a {folder} without a token {missing[0]}")
    check_embeddings(files, folder, max(numbers.values()), encoder, embeddings)
    return QwenPromptTokenizer(tokenizer, length)


def _build_tokenizer(tokenizer_file: TokenizerFile) -> Tokenizer:
    """The tokenizer as transformers' Qwen2Tokenizer builds it."""
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in tokenizer_file.model.merges]
    tokenizer = Tokenizer(BPE(tokenizer_file.model.vocab, [(first, second) for first, second in pairs]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer
