"""ControlNets and T2I-Adapters in a forward: each row of a batch has its own, and the others have zeros added.

Both add to what a UNet's encoder finds. A ControlNet reads the row as well, so it answers those rows that have it, and
no others; a T2I-Adapter reads a picture alone, and its maps are computed before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ControlNetHint(NamedTuple):
    """A ControlNet, loaded, and the picture [1, 3, H, W] that it reads, 0 to 1."""

    network: Any
    picture: Tensor


class AdapterMaps(NamedTuple):
    """What a T2I-Adapter finds in a picture: maps [1, c, h, w] of each block of an encoder, and of its middle."""

    maps: tuple[Tensor, ...]


class RowControl(NamedTuple):
    """What is added to one row, times a strength."""

    source: ControlNetHint | AdapterMaps
    strength: float


class RowInputs(NamedTuple):
    """What a UNet is given, and its ControlNets as well: latents [r, c, h, w], timesteps [r], and the rest by row."""

    sample: Tensor
    timesteps: Tensor
    prompts: Tensor
    added: Mapping[str, Tensor]

    def of(self, index: Tensor) -> RowInputs:
        """Some of the rows."""
        added = {name: tensor[index] for name, tensor in self.added.items()}
        return RowInputs(self.sample[index], self.timesteps[index], self.prompts[index], added)


def residuals(rows: Sequence[Sequence[RowControl]], inputs: RowInputs) -> dict[str, Any]:
    """What a forward of diffusers' UNet is given for rows with these controls; nothing where no row has any.

    Of several controls of one row, the sum is added.
    """
    found: dict[str, Any] = {}
    nets = [_answered(group, inputs) for group in _by_network(rows)]
    if nets:
        *down, middle = _summed(nets, inputs)
        found = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
    maps = [
        _OfRows(_index([row], inputs), _times(control.source.maps, [control.strength], inputs))
        for row, control in _each(rows)
        if isinstance(control.source, AdapterMaps)
    ]
    if maps:
        # The UNet takes them off the list.
        found["down_intrablock_additional_residuals"] = _summed(maps, inputs)
    return found


class _OfRows(NamedTuple):
    """What is added to some rows: tensors [n, c, h, w], whose i-th is for the row `rows[i]`."""

    rows: Tensor
    tensors: Sequence[Tensor]


class _Asked(NamedTuple):
    """One row of a ControlNet's batch."""

    row: int
    hint: ControlNetHint
    strength: float


def _each(rows: Sequence[Sequence[RowControl]]) -> Iterator[tuple[int, RowControl]]:
    return ((row, control) for row, controls in enumerate(rows) for control in controls)


def _by_network(rows: Sequence[Sequence[RowControl]]) -> list[list[_Asked]]:
    """The rows of each ControlNet. One that a row has more than once, with several pictures, has so many batches: no
    row is twice in one, so that the order in which its residuals are added does not depend on the device.
    """
    groups: dict[tuple[int, int], list[_Asked]] = {}
    for row, controls in enumerate(rows):
        times: dict[int, int] = {}
        for source, strength in controls:
            if isinstance(source, ControlNetHint):
                network = id(source.network)
                times[network] = times.get(network, 0) + 1
                groups.setdefault((network, times[network]), []).append(_Asked(row, source, strength))
    return list(groups.values())


def _answered(group: Sequence[_Asked], inputs: RowInputs) -> _OfRows:
    """The residuals of one ControlNet: those of each place in the encoder, and that of the middle."""
    index = _index([one.row for one in group], inputs)
    own = inputs.of(index)
    down, middle = group[0].hint.network(
        own.sample,
        own.timesteps,
        encoder_hidden_states=own.prompts,
        controlnet_cond=torch.cat([one.hint.picture for one in group]),
        added_cond_kwargs=own.added or None,
        return_dict=False,
    )
    return _OfRows(index, _times([*down, middle], [one.strength for one in group], inputs))


def _summed(parts: Sequence[_OfRows], inputs: RowInputs) -> list[Tensor]:
    """One tensor [r, c, h, w] for each place, with zeros for rows to which nothing is added."""
    rows = len(inputs.sample)
    found: list[Tensor] = []
    for tensors in zip_longest(*(part.tensors for part in parts)):
        present = [(part.rows, tensor) for part, tensor in zip(parts, tensors, strict=True) if tensor is not None]
        total = present[0][1].new_zeros(rows, *present[0][1].shape[1:])
        for index, tensor in present:
            total.index_add_(0, index, tensor)
        found.append(total)
    return found


def _times(tensors: Sequence[Tensor], strengths: Sequence[float], inputs: RowInputs) -> list[Tensor]:
    column = torch.tensor(strengths, dtype=inputs.sample.dtype, device=inputs.sample.device)[:, None, None, None]
    return [tensor * column for tensor in tensors]


def _index(rows: Sequence[int], inputs: RowInputs) -> Tensor:
    return torch.tensor(rows, device=inputs.sample.device)
