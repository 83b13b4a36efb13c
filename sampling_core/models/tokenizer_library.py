"""What the tokenizers of all text encoders share: the library `tokenizers` makes them of checked files."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer

from prefect_regional_diffusion.sampling_core.models.family import Reading
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import Token


def built(files: ModelFiles, folder: str, build: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer in a folder, as `build` makes it. Raises ModelError where the library refuses the files."""
    try:
        return build()
    except Exception as error:
        raise files.error(f"has a {folder} that cannot be built ({' '.join(str(error).split())[:120]})") from error


def check_embeddings(files: ModelFiles, folder: str, most: int, encoder: str, embeddings: int) -> None:
    """Raise ModelError unless a text encoder has an embedding for each token, of which `most` is the highest number."""
    if most >= embeddings:
        raise files.error(f"has a {folder} with more than {encoder}'s {embeddings} tokens (one is {most})")


def added_token(token: Token) -> AddedToken:
    """A token that is matched before a text is split, as the library has it."""
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def reading(tokenizer: Tokenizer, prompt: str, most: int) -> Reading:
    """How much of a prompt is read by a model that reads so many of its tokens."""
    spans = tokenizer.encode(prompt, add_special_tokens=False).offsets
    return Reading(len(spans), most, spans[most - 1][1] if len(spans) > most else len(prompt))
