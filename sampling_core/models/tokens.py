"""Prompts as a model's tokenizer reads them: which tokens, and where the model stops reading. No weights, and not
transformers, whose import takes seconds and whose tokenizers read more files than ours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from prefect_regional_diffusion.sampling_core.models.family import Reading
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import TokenizerFiles, read_tokenizer
from prefect_regional_diffusion.sampling_core.models.tokenizer_library import (
    added_token,
    built,
    check_embeddings,
    reading,
)

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How CLIP's tokenizer takes a text apart before it spells the parts (Radford et al. 2021, as in transformers)."""
_BEGIN_AND_END = 2
"""Tokens that are put around each prompt."""


class PromptTokenizer:
    """A CLIP tokenizer; `length` tokens are made of every prompt."""

    def __init__(self, tokenizer: Tokenizer, length: int, begin: int, end: int, padding: int) -> None:
        self._tokenizer = tokenizer
        self.length = length
        self._begin, self._end, self._padding = begin, end, padding

    @property
    def most(self) -> int:
        """Tokens of a prompt that are read, begin and end not counted."""
        return self.length - _BEGIN_AND_END

    def ids(self, prompt: str) -> list[int]:
        """What the text encoder is given: begin, as much of the prompt as there is room for, end, padding."""
        return self.framed(self.words(prompt)[: self.most])

    def words(self, text: str) -> list[int]:
        """All tokens of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def framed(self, inner: Sequence[int]) -> list[int]:
        """At most `most` tokens between begin and end, and padding up to `length`."""
        token_ids = [self._begin, *inner, self._end]
        return token_ids + [self._padding] * (self.length - len(token_ids))

    @property
    def begin(self) -> int:
        """The token before a prompt."""
        return self._begin

    @cached_property
    def comma(self) -> int | None:
        """The token of a comma that is a word; None if the vocabulary has none."""
        return self._tokenizer.token_to_id(",</w>")

    def reading(self, prompt: str) -> Reading:
        """How much of a prompt is read."""
        return reading(self._tokenizer, prompt, self.most)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt, each once, that are no token of their own."""
        pre, text = self._tokenizer.pre_tokenizer, self._tokenizer.normalizer.normalize_str(prompt)
        words = [text[first:last] for _, (first, last) in pre.pre_tokenize_str(text)]
        return list(dict.fromkeys(word for word in words if word.isalnum() and word not in self._known_words))

    @cached_property
    def _known_words(self) -> set[str]:
        # Single letters are there to spell unknown words; the only one that is a word of captions is the article.
        words = {token.removesuffix("</w>") for token in self._tokenizer.get_vocab() if token.endswith("</w>")}
        return {word for word in words if len(word) > 1 or word == "a"}


def open_tokenizer(files: ModelFiles, folder: str, encoder: str, positions: int, embeddings: int) -> PromptTokenizer:
    """The tokenizer in a folder, for the text encoder in another one, of so many positions and so many tokens.

    Raises ModelError.
    """
    definition = read_tokenizer(files, folder)
    if definition.unknown not in definition.vocabulary:
        # It would be missed only when a prompt has a letter that the vocabulary has not.
        raise files.error(f"has a {folder} whose vocabulary lacks its unk_token ({definition.unknown!r:.60})")
    tokenizer = built(files, folder, lambda: _build_tokenizer(definition))
    most = max([*definition.vocabulary.values(), *tokenizer.get_added_tokens_decoder()], default=0)
    check_embeddings(files, folder, most, encoder, embeddings)
    texts = {token.content for token in definition.added_tokens}
    multi_vector = next((text for text in sorted(texts) if f"{text}_1" in texts), None)
    if multi_vector is not None:
        raise files.error(f"has an added token that is several ({multi_vector!r:.60})")
    numbers = tokenizer.get_vocab()
    begin, end, padding = (numbers[text] for text in (definition.begin, definition.end, definition.padding))
    return PromptTokenizer(tokenizer, min(definition.length, positions), begin, end, padding)


def _build_tokenizer(definition: TokenizerFiles) -> Tokenizer:
    """The tokenizer as transformers' CLIPTokenizer builds it."""
    model = BPE(definition.vocabulary, definition.merges, end_of_word_suffix="</w>", unk_token=definition.unknown)
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
    tokenizer.add_tokens([added_token(token) for token in definition.added_tokens])
    return tokenizer
