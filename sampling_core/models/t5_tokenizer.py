"""T5's tokenizer: its files, and which tokens it makes of a prompt. Built as in transformers 5, and without it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from prefect_regional_diffusion.sampling_core.models.component import Class
from prefect_regional_diffusion.sampling_core.models.configurations import Configuration
from prefect_regional_diffusion.sampling_core.models.family import Reading
from prefect_regional_diffusion.sampling_core.models.files import MOST_TOKENIZER_BYTES, ModelFiles
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import (
    CONFIGURATION,
    TOKENIZER,
    Text,
    Token,
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

T5_TOKENIZER = Class("transformers", ("T5Tokenizer", "T5TokenizerFast"))
T5_TOKENIZER_FILES = (TOKENIZER, CONFIGURATION)
"""All that are read of a tokenizer's folder; what `spiece.model` says is in the first of them, too."""
_UNKNOWN = 2
"""The number of the unknown token: transformers takes it from no file."""

Piece = Annotated[list[str | float], Field(min_length=2, max_length=2)]


class Pieces(Configuration):
    """The model in a tokenizer.json: pieces of words with the logarithms of their probabilities."""

    ONLY: ClassVar[Mapping[str, object]] = {"type": "Unigram", "unk_id": _UNKNOWN, "byte_fallback": False}

    vocab: Annotated[list[Piece], Field(min_length=_UNKNOWN + 1, max_length=2**20)]


class Normalizer(Configuration):
    """How characters are replaced: SentencePiece's own table."""

    ONLY: ClassVar[Mapping[str, object]] = {"type": "Precompiled"}

    precompiled_charsmap: str


class TokenizerFile(TokenizerJson):
    """That of T5's tokenizer."""

    model: Pieces
    normalizer: Normalizer | None = None


class T5TokenizerConfiguration(TokenizerConfiguration):
    ONLY: ClassVar[Mapping[str, object]] = {"padding_side": "right", "truncation_side": "right"}
    NOTES: ClassVar[frozenset[str]] = TokenizerConfiguration.NOTES | {
        *("add_prefix_space", "legacy", "sp_model_kwargs", "model_max_length"),
        *("return_length", "return_overflowing_tokens"),
    }

    extra_ids: Annotated[int, Field(ge=0, le=1000)] = 100


class T5PromptTokenizer:
    """T5's tokenizer; `length` tokens are made of every prompt."""

    def __init__(self, tokenizer: Tokenizer, length: int, end: int, padding: int) -> None:
        self._tokenizer = tokenizer
        self.length = length
        self._end, self._padding = end, padding

    @property
    def most(self) -> int:
        """Tokens of a prompt that are read, the end not counted."""
        return self.length - 1

    def ids(self, prompt: str) -> list[int]:
        """What the text encoder is given: as much of the prompt as there is room for, end, padding."""
        token_ids = [*self._tokenizer.encode(prompt, add_special_tokens=False).ids[: self.most], self._end]
        return token_ids + [self._padding] * (self.length - len(token_ids))

    def reading(self, prompt: str) -> Reading:
        """How much of a prompt is read."""
        return reading(self._tokenizer, prompt, self.most)


def open_t5_tokenizer(files: ModelFiles, folder: str, encoder: str, length: int, embeddings: int) -> T5PromptTokenizer:
    """The tokenizer in a folder, for the text encoder in another one, of so many tokens; prompts have `length`.

    Raises ModelError.
    """
    name = f"{folder}/{TOKENIZER}"
    configuration = T5TokenizerConfiguration.read(files, f"{folder}/{CONFIGURATION}")
    tokenizer_file = TokenizerFile.checked(files.mapping(name, MOST_TOKENIZER_BYTES), files, name)
    tokenizer = built(files, folder, lambda: _build_tokenizer(tokenizer_file))
    end, padding, unknown = (
        _text(getattr(configuration, role) or default)
        for role, default in (("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>"))
    )
    pieces = tokenizer.get_vocab()
    stated = stated_tokens(configuration, tokenizer_file)
    # Those that T5 was not trained on have no embeddings.
    tokenizer.add_tokens([added_token(token) for token in stated if token.content in pieces])
    tokenizer.add_special_tokens([_special_token(text) for text in _extra_tokens(configuration) if text in pieces])
    tokenizer.add_special_tokens([_special_token(text) for text in (end, unknown, padding)])
    numbers = tokenizer.get_vocab()
    check_embeddings(files, folder, max(numbers.values()), encoder, embeddings)
    return T5PromptTokenizer(tokenizer, length, numbers[end], numbers[padding])


def _build_tokenizer(tokenizer_file: TokenizerFile) -> Tokenizer:
    """The tokenizer as transformers' T5Tokenizer builds it."""
    pieces = [(str(piece), float(score)) for piece, score in tokenizer_file.model.vocab]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=_UNKNOWN, byte_fallback=False))
    if tokenizer_file.normalizer is not None:
        try:
            table = base64.b64decode(tokenizer_file.normalizer.precompiled_charsmap, validate=True)
        except binascii.Error as error:
            raise ValueError("its precompiled_charsmap is not base64") from error
        tokenizer.normalizer = normalizers.Precompiled(table)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True),
        ]
    )
    return tokenizer


def _extra_tokens(configuration: T5TokenizerConfiguration) -> Iterable[str]:
    """Tokens that T5 was trained to fill in."""
    special_tokens = configuration.extra_special_tokens or configuration.additional_special_tokens
    if special_tokens:
        return [_text(token) for token in special_tokens]
    return [f"<extra_id_{number}>" for number in range(configuration.extra_ids)]


def _text(token: Text | Token) -> str:
    return token if isinstance(token, str) else token.content


def _special_token(text: str) -> AddedToken:
    return AddedToken(text, normalized=False, special=True)
