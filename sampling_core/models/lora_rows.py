"""LoRAs in a forward: each row of a batch has its own, and the network's weights stay as they are.

A LoRA adds `up @ down` to the matrix of a layer (Hu et al. 2021). Applied to what the layer reads, it needs no other
weights than its own two: the layer answers all rows at once, and what belongs to some of them is added to those.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class LowRank(NamedTuple):
    """What is added to one layer: `up @ down`, of any scale in `up`.

    Of a linear layer, `down` is [rank, in] and `up` [out, rank]; of a convolution [rank, in, height, width] and
    [out, rank, 1, 1].
    """

    down: Tensor
    up: Tensor


LoraLayers = Mapping[str, LowRank]
"""What is added to a network, by the name of the layer; nothing for the network as it is."""


def combined(
    loras: Sequence[tuple[LoraLayers, float]], device: torch.device | str, dtype: torch.dtype
) -> dict[str, LowRank]:
    """The sum of several LoRAs, each times its strength, as one: their ranks side by side, which is exact."""
    names = dict.fromkeys(name for layers, _ in loras for name in layers)
    sums: dict[str, LowRank] = {}
    for name in names:
        parts = [(layers[name], strength) for layers, strength in loras if name in layers]
        down = torch.cat([layer.down for layer, _ in parts])
        up = torch.cat([layer.up * strength for layer, strength in parts], dim=1)
        sums[name] = LowRank(down.to(device, dtype), up.to(device, dtype))
    return sums


@contextmanager
def apply_loras(network: Any, rows: Sequence[LoraLayers]) -> Generator[None]:
    """Within the block, the network answers batches of `rows` rows, each with the LoRA layers that are given for it.

    Without rows it is the network as it is. Raises KeyError for a layer that the network does not have.
    """
    additions_by_layer: dict[str, list[tuple[LowRank, Tensor | None]]] = {}
    for layers in {id(one): one for one in rows}.values():
        row_indices = [i for i, other in enumerate(rows) if other is layers]
        index = None if len(row_indices) == len(rows) else torch.tensor(row_indices, device=network.device)
        for name, layer in layers.items():
            additions_by_layer.setdefault(name, []).append((layer, index))
    modules = dict(network.named_modules()) if additions_by_layer else {}
    handles: list[Any] = []
    try:
        for name, additions in additions_by_layer.items():
            # Releases of transformers differ in whether there is a prefix.
            module = modules.get(name) or modules[f"text_model.{name}"]
            handles.append(module.register_forward_hook(partial(_with_additions, additions, len(rows))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_additions(
    additions: Sequence[tuple[LowRank, Tensor | None]],
    rows: int,
    module: Any,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor:
    """A layer's answer with what is added to some of its rows; None stands for all of them."""
    x = inputs[0]
    if len(x) != rows:
        raise ValueError(f"a layer was given {len(x)} rows, and there are LoRAs for {rows}")
    for layer, index in additions:
        if index is None:
            output = output + _product(layer, module, x)
        else:
            output = output.index_add(0, index, _product(layer, module, x.index_select(0, index)))
    return output


def _product(layer: LowRank, module: Any, x: Tensor) -> Tensor:
    # A layer that overflows is given wider numbers than the others of its network.
    down, up = layer.down.to(x.dtype), layer.up.to(x.dtype)
    if down.ndim == 2:
        return functional.linear(functional.linear(x, down), up)
    inner = functional.conv2d(x, down, None, module.stride, module.padding, module.dilation)
    return functional.conv2d(inner, up)
