"""CLIP's text encoder as Stable Diffusion 1 and 2 use it: the hidden state of every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS, Conditioning
from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer


class CLIPTextEncoder:
    """A loaded text encoder with the tokenizer that it was trained with."""

    def __init__(self, encoder: Any, tokenizer: PromptTokenizer) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def encode(self, prompt: str | None) -> Conditioning:
        """`prompt_embeds` [1, tokens, features], float32 on the CPU."""
        tokens = torch.tensor([self._tokenizer.ids(prompt or "")], device=self._encoder.device)
        hidden: Tensor = self._encoder(tokens)[0]
        return Conditioning({PROMPT_EMBEDS: hidden.float().cpu().clone()})
