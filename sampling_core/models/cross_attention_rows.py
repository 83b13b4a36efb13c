"""Several prompts in one row of a UNet: its cross-attention answers each query by the prompts of the query's place.

In every layer of cross-attention, the answer for a place is the sum over prompts of weight times attention to that
prompt, each with a softmax of its own; weights are averaged over the cells of each place of the layer's grid. Other
rows of the forward, and rows with another number of prompts, are answered as if they were alone.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from prefect_regional_diffusion.sampling_core.models.ip_adapter_rows import KeysValues, attend
from prefect_regional_diffusion.sampling_core.models.prompt_rows import RowPrompts, joined_tokens, spans
from prefect_regional_diffusion.sampling_core.tensors.types import Mask


@contextmanager
def attending_to_prompts(network: Any, rows: Sequence[RowPrompts], own: Tensor) -> Generator[Tensor]:
    """Within the block, a UNet or a ControlNet answers batches of `rows` rows, each by the prompts given for it.

    Yields the tokens [r, tokens, features] to call it with; `own` are those of the rows' first prompts. Layers are
    modules of diffusers' `Attention`. Additions to their keys, values and outputs are kept if their hooks are older.
    """
    if not any(rows):
        yield own
        return
    shared = _SharedRows(rows, own)
    handles: list[Any] = []
    try:
        for module in network.modules():
            if getattr(module, "is_cross_attention", False):
                handles += _attach(module, shared)
        yield shared.tokens
    finally:
        for handle in handles:
            handle.remove()


class _Segment(NamedTuple):
    """A span of tokens, and the rows that have a prompt of theirs in it: their places among the rows that share."""

    tokens: slice
    places: Tensor
    weights: Tensor
    """[n, h, w] of these rows."""


class _SharedRows:
    """The rows of a forward that have several prompts."""

    def __init__(self, rows: Sequence[RowPrompts], own: Tensor) -> None:
        self.num_rows, self.num_own = len(rows), own.shape[1]
        self.tokens = joined_tokens(own, rows)
        indices = [i for i, prompts in enumerate(rows) if prompts]
        self.rows = torch.tensor(indices, device=own.device)
        uses: dict[tuple[int, int], list[tuple[int, Mask]]] = {}
        for place, i in enumerate(indices):
            for span, prompt in zip(spans(self.num_own, rows[i]), rows[i], strict=True):
                uses.setdefault((span.start, span.stop), []).append((place, prompt.weight))
        self._own, *self._others = (
            _Segment(
                slice(*span),
                torch.tensor([place for place, _ in of_span], device=own.device),
                torch.stack([weight for _, weight in of_span]).to(own.device),
            )
            for span, of_span in uses.items()
        )
        self._grids: dict[int, list[Tensor]] = {}

    def mix(self, states: Tensor, queries: Tensor, keys_values: KeysValues, heads: int) -> Tensor:
        """Answers [r, places, width] by all prompts; in `states` rows attend to their own tokens alone."""
        own_weights, *weights = self._weights(states)
        mixed = states.index_select(0, self.rows) * own_weights
        for segment, weight in zip(self._others, weights, strict=True):
            rows = self.rows.index_select(0, segment.places)
            keys, values = (tensor.index_select(0, rows)[:, segment.tokens] for tensor in keys_values)
            answers = attend(queries.index_select(0, rows), KeysValues(keys, values), heads)
            mixed = mixed.index_add(0, segment.places, answers * weight)
        return states.index_copy(0, self.rows, mixed)

    def _weights(self, states: Tensor) -> list[Tensor]:
        """The weights [n, places, 1] of each segment's rows, the own tokens' first, on the grid of a layer."""
        places = states.shape[1]
        if places not in self._grids:
            segments = (self._own, *self._others)
            self._grids[places] = [on_grid(segment.weights, places)[..., None].to(states) for segment in segments]
        return self._grids[places]


def on_grid(weights: Tensor, places: int) -> Tensor:
    """Weights [n, h, w] averaged over the cells of each of a layer's places: [n, places].

    A UNet halves its grid from level to level, odd edges rounded up. Raises ValueError for another number of places.
    """
    grid = weights[:, None]
    while grid.shape[2] * grid.shape[3] > places:
        grid = avg_pool2d(grid, 2, ceil_mode=True, count_include_pad=False)
    if grid.shape[2] * grid.shape[3] != places:
        raise ValueError(f"a layer of {places} places, which are no halves of {tuple(weights.shape[1:])} cells")
    return grid.flatten(1)


class _Layer:
    """A layer in a forward: its queries, keys and values are kept until its answers are mixed of them."""

    def __init__(self, rows: _SharedRows, heads: int) -> None:
        self._rows, self._heads = rows, heads
        self._kept: dict[str, Tensor] = {}

    def keep_queries(self, module: Any, inputs: object, output: Tensor) -> None:
        """A hook on what makes the queries [r, places, width]."""
        if len(output) != self._rows.num_rows:
            raise ValueError(f"a layer was given {len(output)} rows, and there are prompts for {self._rows.num_rows}")
        self._kept["queries"] = output

    def keep_keys(self, module: Any, inputs: object, output: Tensor) -> Tensor:
        """A hook on what makes the keys of all tokens: leaves those of the rows' own."""
        return self._keep_tokens("keys", output)

    def keep_values(self, module: Any, inputs: object, output: Tensor) -> Tensor:
        """The same of the values."""
        return self._keep_tokens("values", output)

    def _keep_tokens(self, name: str, output: Tensor) -> Tensor:
        self._kept[name] = output
        return output[:, : self._rows.num_own]

    def mix(self, module: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        """A hook before the last matrix."""
        queries, keys, values = (self._kept.pop(name) for name in ("queries", "keys", "values"))
        return self._rows.mix(inputs[0], queries, KeysValues(keys, values), self._heads)


def _attach(attention: Any, rows: _SharedRows) -> list[Any]:
    """Puts hooks on a layer, and returns what takes them off."""
    layer = _Layer(rows, attention.heads)
    return [
        attention.to_q.register_forward_hook(layer.keep_queries),
        attention.to_k.register_forward_hook(layer.keep_keys),
        attention.to_v.register_forward_hook(layer.keep_values),
        attention.to_out[0].register_forward_pre_hook(layer.mix),
    ]
