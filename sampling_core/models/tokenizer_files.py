"""The files of a CLIP tokenizer: vocabulary, merges, and tokens beyond the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from prefect_regional_diffusion.sampling_core.models.configurations import Configuration
from prefect_regional_diffusion.sampling_core.models.files import MOST_TOKENIZER_BYTES, ModelFiles

TOKENIZER, CONFIGURATION = "tokenizer.json", "tokenizer_config.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
SPECIAL_TOKENS, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
CLIP_TOKENIZER_FILES = (TOKENIZER, CONFIGURATION, VOCABULARY, MERGES, SPECIAL_TOKENS, ADDED_TOKENS)
"""All that are read of a tokenizer's folder."""

MOST_ADDED_TOKENS = 10_000

Text = Annotated[str, Field(min_length=1, max_length=256)]
Number = Annotated[int, Field(ge=0, lt=2**20)]


class Token(Configuration):
    """A token that is matched in a text before the text is split."""

    ONLY: ClassVar[Mapping[str, object]] = {"__type": "AddedToken"}

    content: Text
    id: Number | None = None
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


class SpecialTokens(Configuration):
    """Special tokens, by role."""

    bos_token: Text | Token | None = None
    eos_token: Text | Token | None = None
    pad_token: Text | Token | None = None
    unk_token: Text | Token | None = None
    additional_special_tokens: Annotated[list[Text | Token], Field(max_length=MOST_ADDED_TOKENS)] | None = None
    extra_special_tokens: Annotated[list[Text | Token], Field(max_length=MOST_ADDED_TOKENS)] | None = None


class TokenizerConfiguration(SpecialTokens):
    ONLY: ClassVar[Mapping[str, object]] = {
        "padding_side": "right",
        "truncation_side": "right",
        "add_prefix_space": False,
    }
    NOTES: ClassVar[frozenset[str]] = frozenset(
        [
            "_commit_hash",
            "add_bos_token",
            "add_eos_token",
            "backend",
            "clean_up_tokenization_spaces",
            "do_lower_case",
            "errors",
            "is_local",
            "local_files_only",
            "max_length",
            "merges_file",
            "model_input_names",
            "model_type",
            "name_or_path",
            "pad_token_type_id",
            "pad_to_multiple_of",
            "processor_class",
            "special_tokens_map_file",
            "split_special_tokens",
            "stride",
            "tokenizer_class",
            "tokenizer_file",
            "truncation_strategy",
            "use_fast",
            "vocab_file",
        ]
    )

    model_max_length: Annotated[int, Field(ge=3)] = 77
    added_tokens_decoder: Annotated[dict[str, Token], Field(max_length=MOST_ADDED_TOKENS)] | None = None


class TokenizerJson(Configuration):
    """A tokenizer.json, whatever model is in it. Its rules for splitting a text are not read: the model's are known."""

    NOTES: ClassVar[frozenset[str]] = frozenset({"version"})

    model: Any
    added_tokens: Annotated[list[Token], Field(max_length=MOST_ADDED_TOKENS)] | None = None
    truncation: dict[str, Any] | None = None
    padding: dict[str, Any] | None = None
    normalizer: Any = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


class BytePairs(Configuration):
    """The model in a tokenizer.json."""

    ONLY: ClassVar[Mapping[str, object]] = {
        **{"type": "BPE", "end_of_word_suffix": "</w>", "continuing_subword_prefix": "", "ignore_merges": False},
        **{"byte_fallback": False, "fuse_unk": False},
    }
    NOTES: ClassVar[frozenset[str]] = frozenset({"dropout", "unk_token"})

    vocab: dict[str, Number]
    merges: list[str] | list[list[str]]


class TokenizerFile(TokenizerJson):
    """That of a CLIP tokenizer."""

    model: BytePairs
    normalizer: dict[str, Any] | None = None


class Vocabulary(Configuration):
    vocab: dict[str, Number]


class AddedTokens(Configuration):
    tokens: Annotated[dict[Text, Number], Field(max_length=MOST_ADDED_TOKENS)]


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer is made of. `added_tokens` are beyond `vocabulary`, in the order in which they get numbers."""

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    added_tokens: list[Token]
    begin: str
    end: str
    padding: str
    unknown: str
    length: int
    """Tokens that the model is given for a prompt, begin and end included, if it has as many positions."""


def stated_tokens(configuration: TokenizerConfiguration, tokenizer_file: TokenizerJson) -> list[Token]:
    """The tokens beyond the vocabulary: the configuration's where it has a list of them, otherwise the file's."""
    tokens_by_number = configuration.added_tokens_decoder
    return list(tokens_by_number.values()) if tokens_by_number is not None else tokenizer_file.added_tokens or []


def read_tokenizer(files: ModelFiles, folder: str) -> TokenizerFiles:
    """Read and check the files in a tokenizer's folder, and join them as transformers 5 does. Raises ModelError."""
    tokenizer, vocab, special_tokens, added_tokens = (
        f"{folder}/{name}" for name in (TOKENIZER, VOCABULARY, SPECIAL_TOKENS, ADDED_TOKENS)
    )
    configuration = TokenizerConfiguration.read(files, f"{folder}/{CONFIGURATION}")
    tokenizer_file = None
    if tokenizer in files:
        tokenizer_file = TokenizerFile.checked(files.mapping(tokenizer, MOST_TOKENIZER_BYTES), files, tokenizer)
        vocabulary, merges = tokenizer_file.model.vocab, _pairs(files, tokenizer, tokenizer_file.model.merges)
    else:
        vocabulary_values = {"vocab": files.mapping(vocab, MOST_TOKENIZER_BYTES)}
        vocabulary = Vocabulary.checked(vocabulary_values, files, vocab).vocab
        merges = _pairs(files, f"{folder}/{MERGES}", _lines(files, f"{folder}/{MERGES}"))
    special = SpecialTokens.read(files, special_tokens) if special_tokens in files else SpecialTokens()
    if configuration.added_tokens_decoder is not None:
        # It holds all that the older files do.
        tokens_by_number = _by_number(files, folder, configuration.added_tokens_decoder)
        special = SpecialTokens()
    else:
        older_tokens = (
            AddedTokens.checked({"tokens": files.mapping(added_tokens)}, files, added_tokens).tokens
            if (added_tokens in files)
            else {}
        )
        tokens_by_number = _tokens_of_older_file(older_tokens, configuration, special)
        tokens_by_number |= {
            token.id: token
            for token in ((tokenizer_file.added_tokens if tokenizer_file else None) or ())
            if token.id is not None
        }
    special_by_role = {
        part: _token(getattr(special, part) or getattr(configuration, part) or text)
        for part, text in _DEFAULT_SPECIAL_TOKENS.items()
    }
    additions = [tokens_by_number[number] for number in sorted(tokens_by_number)]
    contents = {token.content for token in additions}
    for token in (*special_by_role.values(), *_extra_tokens(configuration, special)):
        if token.content not in contents:
            contents.add(token.content)
            additions.append(token)
    special_contents = {token.content for token in special_by_role.values()}
    return TokenizerFiles(
        vocabulary,
        merges,
        [
            token.model_copy(update={"special": token.special or token.content in special_contents})
            for token in additions
        ],
        begin=special_by_role["bos_token"].content,
        end=special_by_role["eos_token"].content,
        padding=special_by_role["pad_token"].content,
        unknown=special_by_role["unk_token"].content,
        length=configuration.model_max_length,
    )


_DEFAULT_SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
"""CLIP's own, in the order in which they are added."""


def _by_number(files: ModelFiles, folder: str, tokens: Mapping[str, Token]) -> dict[int, Token]:
    if not all(number.isdecimal() and number.isascii() and len(number) < 8 for number in tokens):
        raise files.error(f"has added tokens without numbers ({folder}/{CONFIGURATION}: added_tokens_decoder)")
    return {int(number): token for number, token in tokens.items()}


def _tokens_of_older_file(
    tokens: Mapping[str, int], configuration: SpecialTokens, special: SpecialTokens
) -> dict[int, Token]:
    """Tokens of an added_tokens.json, which has no more than their texts."""
    special_tokens = [getattr(special, part) or getattr(configuration, part) for part in _DEFAULT_SPECIAL_TOKENS]
    special_contents = {
        _token(token).content
        for token in (*special_tokens, *_extra_tokens(configuration, special))
        if token is not None
    }
    return {
        number: Token(content=content, special=content in special_contents, normalized=content not in special_contents)
        for content, number in tokens.items()
    }


def _extra_tokens(configuration: SpecialTokens, special: SpecialTokens) -> list[Token]:
    """Further special tokens, under the names of transformers 4 and 5."""
    extra = configuration.extra_special_tokens or configuration.additional_special_tokens or []
    extra = [*extra, *(special.extra_special_tokens or [])] or special.additional_special_tokens or []
    return [_token(token) for token in extra]


def _token(token: str | Token) -> Token:
    return Token(content=token, special=True, normalized=False) if isinstance(token, str) else token


def _lines(files: ModelFiles, name: str) -> list[str]:
    try:
        text = files.read(name, MOST_TOKENIZER_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise files.error(f"has a {name} that is not UTF-8") from error
    return [line for line in text.split("\n") if line and not line.startswith("#version")]


def _pairs(files: ModelFiles, name: str, merges: list[str] | list[list[str]]) -> list[tuple[str, str]]:
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    if not all(len(pair) == 2 for pair in pairs):
        raise files.error(f"has a {name} that does not merge two tokens at a time")
    return [(left, right) for left, right in pairs]
