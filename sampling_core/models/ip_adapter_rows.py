"""Image prompts in a forward: each row of a batch attends to its own images, and the network stays as it is.

Beside the prompt, an IP-Adapter (Ye et al. 2023) has layers of attention attend to an image: with the same queries, and
with keys and values of the image's own. The result, times a strength, is added. It is computed for those rows alone
that have an image, so a row without one is answered as if no other had any. An image of zeros would not do: its keys
and values are not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class KeysValues(NamedTuple):
    """What one layer attends to of an image: [1, tokens, width] each, with the heads one after the other in `width`."""

    keys: Tensor
    values: Tensor


ImageLayers = Mapping[str, KeysValues]
"""What a network attends to of an image, by the name of the layer."""


class RowImage(NamedTuple):
    """An image that a row attends to, and the factor of what is added."""

    layers: ImageLayers
    strength: float


def attending_in_unet(network: Any, rows: Sequence[Sequence[RowImage]]) -> AbstractContextManager[None]:
    """Within the block, a UNet answers batches of `rows` rows, each attending to the images that are given for it.

    Layers are modules of diffusers' `Attention`; what is added goes through their last matrix, as in diffusers. Raises
    AttributeError for a layer that the network does not have.
    """
    return _attend_in_rows(network, rows, _attach_to_unet)


def attending_in_flux(network: Any, rows: Sequence[Sequence[RowImage]]) -> AbstractContextManager[None]:
    """The same for FLUX's transformer. Layers are its double-stream blocks.

    Queries are taken before they are rotated by their places, and what is added goes to the picture's tokens at the
    block's end, as in diffusers.
    """
    return _attend_in_rows(network, rows, _attach_to_flux)


class _Use(NamedTuple):
    """Rows that attend to one image, with one strength."""

    image: KeysValues
    strength: float
    rows: Tensor


class _Layer:
    """A layer in a forward: its queries are kept until the attention to images is computed from them."""

    def __init__(self, uses: Sequence[_Use], rows: int) -> None:
        self._uses, self._rows = uses, rows
        self._queries: Tensor | None = None

    def remember(self, module: Any, inputs: object, queries: Tensor) -> None:
        """A hook on what makes the queries: [r, places, width], or with the heads apart."""
        if len(queries) != self._rows:
            raise ValueError(f"a layer was given {len(queries)} rows, and there are images for {self._rows}")
        self._queries = queries.flatten(2)

    def add_images(self, states: Tensor, heads: int) -> Tensor:
        """States [r, places, width] plus their rows' attention to images."""
        queries, self._queries = self._queries, None
        if queries is None:
            raise RuntimeError("a layer of attention has no queries")
        for image, strength, rows in self._uses:
            image_states = attend(queries.index_select(0, rows), image, heads)
            states = states.index_add(0, rows, strength * image_states)
        return states


def attend(queries: Tensor, image: KeysValues, heads: int) -> Tensor:
    """Attention of queries [r, places, width] to an image."""

    def by_head(tokens: Tensor) -> Tensor:
        """[r, heads, tokens, width of a head] of each row; one that all rows share is the same in each."""
        return tokens.expand(len(queries), -1, -1).unflatten(2, (heads, -1)).transpose(1, 2)

    states = functional.scaled_dot_product_attention(by_head(queries), by_head(image.keys), by_head(image.values))
    return states.transpose(1, 2).flatten(2)


_Attach = Callable[[Any, _Layer], list[Any]]
"""Puts hooks on a module, and returns what takes them off."""


def _attach_to_unet(attention: Any, layer: _Layer) -> list[Any]:
    def add(module: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        return layer.add_images(inputs[0], attention.heads)

    return [
        attention.to_q.register_forward_hook(layer.remember),
        attention.to_out[0].register_forward_pre_hook(add),
    ]


def _attach_to_flux(block: Any, layer: _Layer) -> list[Any]:
    def add(module: Any, inputs: object, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        prompt, picture = output
        return prompt, layer.add_images(picture, block.attn.heads)

    return [block.attn.norm_q.register_forward_hook(layer.remember), block.register_forward_hook(add)]


@contextmanager
def _attend_in_rows(network: Any, rows: Sequence[Sequence[RowImage]], attach: _Attach) -> Generator[None]:
    groups: dict[tuple[int, float], list[int]] = {}
    images = {id(image.layers): image.layers for row in rows for image in row}
    for i, row in enumerate(rows):
        for image in row:
            groups.setdefault((id(image.layers), image.strength), []).append(i)
    uses_by_layer: dict[str, list[_Use]] = {}
    for (image, strength), row_indices in groups.items():
        index = torch.tensor(row_indices, device=network.device)
        for name, keys_values in images[image].items():
            uses_by_layer.setdefault(name, []).append(_Use(keys_values, strength, index))
    handles: list[Any] = []
    try:
        for name, uses in uses_by_layer.items():
            handles += attach(network.get_submodule(name), _Layer(uses, len(rows)))
        yield
    finally:
        for handle in handles:
            handle.remove()
