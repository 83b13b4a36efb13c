"""Two text encoders of CLIP as Stable Diffusion XL uses them: their last layers but one, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.conditioning import (
    POOLED_PROMPT_EMBEDS,
    PROMPT_EMBEDS,
    Conditioning,
)
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers, apply_loras
from prefect_regional_diffusion.sampling_core.models.prompt_chunks import prompt_chunks
from prefect_regional_diffusion.sampling_core.models.textual_inversion import NO_EMBEDDINGS, Embeddings
from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer
from prefect_regional_diffusion.sampling_core.models.weighted_encoding import Encoded, encode_chunks
from prefect_regional_diffusion.sampling_core.names import PromptSyntax


class CLIPPairEncoder:
    """Two loaded text encoders, each with the tokenizer that it was trained with; the second one has a projection.

    Of the refiner the second one alone.
    """

    def __init__(self, *encoders: tuple[Any, PromptTokenizer]) -> None:
        self._encoders = encoders

    @torch.inference_mode()
    def encode(
        self,
        prompt: str | None,
        syntax: PromptSyntax = "plain",
        embeddings: Embeddings = NO_EMBEDDINGS,
        loras: Sequence[LoraLayers] = (),
    ) -> Conditioning:
        """`prompt_embeds` [1, chunks * tokens, features], `pooled_prompt_embeds` [1, features]; float32 on the CPU.

        Both encoders have as many chunks: one that needs fewer is given empty ones. None, no prompt at all, is zeros.
        `loras` are what is added to each.
        """
        lengths = {name: len(embedding) for name, embedding in embeddings.items()}
        chunks = [prompt_chunks(prompt or "", syntax, tokenizer, lengths) for _, tokenizer in self._encoders]
        most = max(map(len, chunks))
        states, pooled = list[Tensor](), list[Tensor]()
        for i, (encoder, tokenizer) in enumerate(self._encoders):
            vectors = {name: embedding.vectors[i] for name, embedding in embeddings.items()}
            padded_chunks = [*chunks[i], *([] for _ in range(most - len(chunks[i])))]
            encoded = encode_chunks(
                padded_chunks, syntax, encoder, tokenizer, vectors, _encoder_forward(encoder, loras[i : i + 1])
            )
            states.append(encoded.states)
            pooled += [] if encoded.pooled is None else [encoded.pooled]
        tensors = {PROMPT_EMBEDS: torch.cat(states, dim=-1), POOLED_PROMPT_EMBEDS: pooled[-1]}
        if prompt is None:
            tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        return Conditioning(tensors, repeatable=frozenset({PROMPT_EMBEDS}))


def _encoder_forward(encoder: Any, lora: Sequence[LoraLayers]) -> Callable[[Tensor], Encoded]:
    def forward(tokens: Tensor) -> Encoded:
        with apply_loras(encoder, [*lora] * len(tokens)):
            output = encoder(tokens, output_hidden_states=True)
        return Encoded(output.hidden_states[-2], getattr(output, "text_embeds", None))

    return forward
