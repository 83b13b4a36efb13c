"""Two text encoders of CLIP as Stable Diffusion XL uses them: their last layers but one, side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.conditioning import (
    POOLED_PROMPT_EMBEDS,
    PROMPT_EMBEDS,
    Conditioning,
)
from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer


class CLIPPairEncoder:
    """Two loaded text encoders, each with the tokenizer that it was trained with; the second one has a projection."""

    def __init__(self, first: tuple[Any, PromptTokenizer], second: tuple[Any, PromptTokenizer]) -> None:
        self._encoders = (first, second)

    @torch.inference_mode()
    def encode(self, prompt: str | None) -> Conditioning:
        """`prompt_embeds` [1, tokens, features] and `pooled_prompt_embeds` [1, features], float32 on the CPU.

        None, no prompt at all, is zeros.
        """
        outputs = [
            encoder(torch.tensor([tokenizer.ids(prompt or "")], device=encoder.device), output_hidden_states=True)
            for encoder, tokenizer in self._encoders
        ]
        states: list[Tensor] = [output.hidden_states[-2].float().cpu() for output in outputs]
        found = {PROMPT_EMBEDS: torch.cat(states, dim=-1), POOLED_PROMPT_EMBEDS: outputs[-1].text_embeds.float().cpu()}
        if prompt is None:
            found = {name: torch.zeros_like(tensor) for name, tensor in found.items()}
        return Conditioning({name: tensor.clone() for name, tensor in found.items()})
