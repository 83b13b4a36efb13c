"""CLIP's text encoder: the hidden states of every token, and the pooled embedding of a whole prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS, Conditioning
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers, apply_loras
from prefect_regional_diffusion.sampling_core.models.prompt_chunks import prompt_chunks
from prefect_regional_diffusion.sampling_core.models.textual_inversion import NO_EMBEDDINGS, Embeddings
from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer
from prefect_regional_diffusion.sampling_core.models.weighted_encoding import Encoded, encode_chunks
from prefect_regional_diffusion.sampling_core.names import PromptSyntax


class CLIPTextEncoder:
    """A loaded text encoder with the tokenizer that it was trained with, as Stable Diffusion 1 and 2 use it."""

    def __init__(self, encoder: Any, tokenizer: PromptTokenizer) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def encode(
        self,
        prompt: str | None,
        syntax: PromptSyntax = "plain",
        embeddings: Embeddings = NO_EMBEDDINGS,
        loras: Sequence[LoraLayers] = (),
    ) -> Conditioning:
        """`prompt_embeds` [1, chunks * tokens, features], float32 on the CPU.

        `loras` is what is added to the one encoder.
        """
        lengths = {name: len(embedding) for name, embedding in embeddings.items()}
        chunks = prompt_chunks(prompt or "", syntax, self._tokenizer, lengths)
        vectors = {name: embedding.vectors[0] for name, embedding in embeddings.items()}

        def forward(tokens: Tensor) -> Encoded:
            with apply_loras(self._encoder, [*loras] * len(tokens)):
                return Encoded(self._encoder(tokens)[0])

        encoded = encode_chunks(chunks, syntax, self._encoder, self._tokenizer, vectors, forward)
        return Conditioning({PROMPT_EMBEDS: encoded.states}, repeatable=frozenset({PROMPT_EMBEDS}))


def projected_states(
    encoder: Any, tokenizer: PromptTokenizer, prompt: str, loras: Sequence[LoraLayers] = ()
) -> tuple[Tensor, Tensor]:
    """A prompt encoded by a text encoder with a projection, float32 on the CPU.

    `loras` is what is added to the encoder, if there is anything.
    Returns the states [1, tokens, features] of the last layer but one, and the projected embedding [1, features].
    """
    tokens = torch.tensor([tokenizer.ids(prompt)], device=encoder.device)
    with apply_loras(encoder, loras):
        output = encoder(tokens, output_hidden_states=True)
    return output.hidden_states[-2].float().cpu(), output.text_embeds.float().cpu()
