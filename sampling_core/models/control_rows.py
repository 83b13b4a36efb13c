"""ControlNets and T2I-Adapters in a forward: each row of a batch has its own, and the others have zeros added.

Both add to the features of a UNet's encoder. A ControlNet also reads the row's latent, so it runs in every step, on the
rows that have it; a T2I-Adapter reads the picture alone, and its maps are computed before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.cross_attention_rows import attending_to_prompts
from prefect_regional_diffusion.sampling_core.models.prompt_rows import RowPrompts
from prefect_regional_diffusion.sampling_core.tensors.window import Lattice, Window


class ControlNetHint(NamedTuple):
    """A ControlNet, loaded, and the picture [1, 3, H, W] that it reads, 0 to 1."""

    network: Any
    picture: Tensor

    def within(self, window: Window, lattice: Lattice) -> ControlNetHint:
        """The same for a row that shows a window of a canvas of `lattice` cells: it reads that part of the picture."""
        return self._replace(picture=window.cut_scaled(self.picture, lattice))


class AdapterMaps(NamedTuple):
    """A T2I-Adapter's features of a picture: maps [1, c, h, w] for each block of an encoder, and for its middle."""

    maps: tuple[Tensor, ...]

    def within(self, window: Window, lattice: Lattice) -> AdapterMaps:
        """The same for a row that shows a window of a canvas of `lattice` cells: that part of the canvas' maps."""
        return AdapterMaps(tuple(window.cut_scaled(feature_map, lattice) for feature_map in self.maps))


class RowControl(NamedTuple):
    """What is added to one row, times a strength."""

    source: ControlNetHint | AdapterMaps
    strength: float

    def within(self, window: Window, lattice: Lattice) -> RowControl:
        """The same for a row that shows a window of a canvas of `lattice` cells."""
        return self._replace(source=self.source.within(window, lattice))


class RowInputs(NamedTuple):
    """Inputs of a UNet and of its ControlNets: latents [r, c, h, w], timesteps [r], and the rest by row.

    `prompts` are the tokens of the rows' first prompts, `shares` all prompts of rows that have several.
    """

    sample: Tensor
    timesteps: Tensor
    prompts: Tensor
    added_cond: Mapping[str, Tensor]
    shares: Sequence[RowPrompts]

    def of(self, index: Tensor) -> RowInputs:
        """Some of the rows."""
        added_cond = {name: tensor[index] for name, tensor in self.added_cond.items()}
        shares = [self.shares[i] for i in index.tolist()]
        return RowInputs(self.sample[index], self.timesteps[index], self.prompts[index], added_cond, shares)


def residuals(rows: Sequence[Sequence[RowControl]], inputs: RowInputs) -> dict[str, Any]:
    """Keyword arguments of diffusers' UNet for rows with these controls; none where no row has any.

    The residuals of several controls of one row are summed.
    """
    unet_kwargs: dict[str, Any] = {}
    controlnet_tensors = [_controlnet_residuals(group, inputs) for group in _controlnet_batches(rows)]
    if controlnet_tensors:
        *down, middle = _sum_by_place(controlnet_tensors, inputs)
        unet_kwargs = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
    adapter_tensors = [
        _RowTensors(_row_index([row], inputs), _scaled(control.source.maps, [control.strength], inputs))
        for row, control in _row_controls(rows)
        if isinstance(control.source, AdapterMaps)
    ]
    if adapter_tensors:
        # The UNet takes them off the list.
        unet_kwargs["down_intrablock_additional_residuals"] = _sum_by_place(adapter_tensors, inputs)
    return unet_kwargs


class _RowTensors(NamedTuple):
    """What is added to some rows: tensors [n, c, h, w], whose i-th is for the row `rows[i]`."""

    rows: Tensor
    tensors: Sequence[Tensor]


class _ControlNetRow(NamedTuple):
    """One row of a ControlNet's batch."""

    row: int
    hint: ControlNetHint
    strength: float


def _row_controls(rows: Sequence[Sequence[RowControl]]) -> Iterator[tuple[int, RowControl]]:
    return ((row, control) for row, controls in enumerate(rows) for control in controls)


def _controlnet_batches(rows: Sequence[Sequence[RowControl]]) -> list[list[_ControlNetRow]]:
    """The rows of each ControlNet. If a row has one ControlNet several times, with several pictures, they are in as
    many batches: no row is twice in a batch, so that the order in which its residuals are added does not depend on the
    device.
    """
    groups: dict[tuple[int, int], list[_ControlNetRow]] = {}
    for row, controls in enumerate(rows):
        occurrences: dict[int, int] = {}
        for source, strength in controls:
            if isinstance(source, ControlNetHint):
                network = id(source.network)
                occurrences[network] = occurrences.get(network, 0) + 1
                groups.setdefault((network, occurrences[network]), []).append(_ControlNetRow(row, source, strength))
    return list(groups.values())


def _controlnet_residuals(group: Sequence[_ControlNetRow], inputs: RowInputs) -> _RowTensors:
    """The residuals of one ControlNet: those of each place in the encoder, and that of the middle."""
    index = _row_index([row.row for row in group], inputs)
    row_inputs = inputs.of(index)
    network = group[0].hint.network
    with attending_to_prompts(network, row_inputs.shares, row_inputs.prompts) as tokens:
        down, middle = network(
            row_inputs.sample,
            row_inputs.timesteps,
            encoder_hidden_states=tokens,
            controlnet_cond=torch.cat([row.hint.picture for row in group]),
            added_cond_kwargs=row_inputs.added_cond or None,
            return_dict=False,
        )
    return _RowTensors(index, _scaled([*down, middle], [row.strength for row in group], inputs))


def _sum_by_place(parts: Sequence[_RowTensors], inputs: RowInputs) -> list[Tensor]:
    """One tensor [r, c, h, w] for each place, with zeros for rows to which nothing is added."""
    rows = len(inputs.sample)
    sums: list[Tensor] = []
    for tensors in zip_longest(*(part.tensors for part in parts)):
        present = [(part.rows, tensor) for part, tensor in zip(parts, tensors, strict=True) if tensor is not None]
        total = present[0][1].new_zeros(rows, *present[0][1].shape[1:])
        for index, tensor in present:
            total.index_add_(0, index, tensor)
        sums.append(total)
    return sums


def _scaled(tensors: Sequence[Tensor], strengths: Sequence[float], inputs: RowInputs) -> list[Tensor]:
    column = torch.tensor(strengths, dtype=inputs.sample.dtype, device=inputs.sample.device)[:, None, None, None]
    return [tensor * column for tensor in tensors]


def _row_index(rows: Sequence[int], inputs: RowInputs) -> Tensor:
    return torch.tensor(rows, device=inputs.sample.device)
