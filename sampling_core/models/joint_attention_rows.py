"""Several prompts in one row of a transformer whose text and picture tokens attend to each other (MMDiT).

The tokens of all prompts lie side by side, and a bias on the logarithms of attention keeps them apart. A token of the
picture attends to the tokens of each prompt with the logarithm of its weight there, so that N equal prompts whose
weights sum to 1 count as one; tokens of a prompt attend to their own and, with the same bias, to the picture; tokens of
the picture attend to each other as ever. Tokens that fill a row up are attended to by none but themselves.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, scaled_dot_product_attention

from prefect_regional_diffusion.sampling_core.models.prompt_rows import RowPrompts, joined_tokens, spans

_NEVER = float("-inf")


class JoinedPrompts(NamedTuple):
    """The text tokens [r, text, features] of a forward, and what is added to the logarithms of its attention.

    `bias` is [r, 1, text + picture, text + picture], text first; None if no row has several prompts.
    """

    tokens: Tensor
    bias: Tensor | None

    @property
    def picture_first(self) -> Tensor | None:
        """The bias for tokens in the other order."""
        if self.bias is None:
            return None
        return self.bias.roll((-self.tokens.shape[1], -self.tokens.shape[1]), (2, 3))


def joined_prompts(own: Tensor, rows: Sequence[RowPrompts], patch: int, picture: int) -> JoinedPrompts:
    """The prompts of rows; `own` [r, tokens, features] are the first ones' tokens.

    A token of the picture, of which there are `picture`, is `patch` x `patch` cells of the latent, whose weights are
    averaged.
    """
    if not any(rows):
        return JoinedPrompts(own, None)
    tokens = joined_tokens(own, rows)
    text = tokens.shape[1]
    bias = torch.zeros(len(rows), 1, text + picture, text + picture, device=own.device, dtype=own.dtype)
    for row_bias, prompts in zip(bias, rows, strict=True):
        of_row = spans(own.shape[1], prompts)
        # What fills the row up is one more prompt, with no part of the picture.
        edges = [*of_row, slice(of_row[-1].stop, text)]
        weights = [prompt.weight for prompt in prompts]
        row_bias[0, :text, :text] = _NEVER
        row_bias[0, edges[-1], text:] = row_bias[0, text:, edges[-1]] = _NEVER
        for span in edges:
            row_bias[0, span, span] = 0
        for span, weight in zip(of_row, weights, strict=False):
            log_weight = avg_pool2d(weight[None, None], patch).flatten().log().to(own)
            row_bias[0, span, text:] = log_weight
            row_bias[0, text:, span] = log_weight[:, None]
    return JoinedPrompts(tokens, bias)


@contextmanager
def biased_sd3_attention(transformer: Any, bias: Tensor | None) -> Generator[None]:
    """Within the block, SD3's transformer adds a bias, the picture's tokens first, to its joint attention."""
    attentions = [] if bias is None else [block.attn for block in transformer.transformer_blocks]
    processors = [attention.processor for attention in attentions]
    try:
        for attention in attentions:
            attention.processor = _BiasedJointAttention(bias)
        yield
    finally:
        for attention, processor in zip(attentions, processors, strict=True):
            attention.processor = processor


class _BiasedJointAttention:
    """What diffusers' joint attention of SD3 computes, with a bias."""

    def __init__(self, bias: Tensor | None) -> None:
        self._bias = bias

    def __call__(
        self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> tuple[Tensor, Tensor]:
        """The picture's tokens and the text's, each [r, tokens, width]. There is no mask but the bias."""
        picture = (
            _by_head(attention, attention.to_q(hidden_states), attention.norm_q),
            _by_head(attention, attention.to_k(hidden_states), attention.norm_k),
            _by_head(attention, attention.to_v(hidden_states), None),
        )
        text = (
            _by_head(attention, attention.add_q_proj(encoder_hidden_states), attention.norm_added_q),
            _by_head(attention, attention.add_k_proj(encoder_hidden_states), attention.norm_added_k),
            _by_head(attention, attention.add_v_proj(encoder_hidden_states), None),
        )
        queries, keys, values = (torch.cat(both, dim=2) for both in zip(picture, text, strict=True))
        states = scaled_dot_product_attention(queries, keys, values, attn_mask=self._bias)
        states = states.transpose(1, 2).flatten(2)
        of_picture, of_text = states.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        if not attention.context_pre_only:
            of_text = attention.to_add_out(of_text)
        return attention.to_out[1](attention.to_out[0](of_picture)), of_text


def _by_head(attention: Any, states: Tensor, norm: Any) -> Tensor:
    """[r, heads, tokens, width of a head], normalised if the network does that."""
    states = states.unflatten(2, (attention.heads, -1)).transpose(1, 2)
    return states if norm is None else norm(states)
