"""All open queries of a step, answered in as few network rows and forwards as possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.guidance import PromptKey, Request, Row
from prefect_regional_diffusion.sampling_core.models.conditioning import (
    GUIDANCE,
    PLACE,
    Conditioning,
    Layout,
    stack,
    stackable,
)
from prefect_regional_diffusion.sampling_core.models.family import Denoiser
from prefect_regional_diffusion.sampling_core.models.model_key import AdapterKeys
from prefect_regional_diffusion.sampling_core.models.prompt_rows import RowPrompt
from prefect_regional_diffusion.sampling_core.models.row_adapters import LoadedAdapters, RowAdapters
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers.base import DenoisedPrediction
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Rows
from prefect_regional_diffusion.sampling_core.tensors.window import Lattice, Window

AdaptersOfRow = Callable[[str, AdapterKeys], RowAdapters]
"""The loaded adapters of a model's row, by their keys. Raises KeyError for adapters that are not loaded."""


def without_adapters(model: str, keys: AdapterKeys) -> RowAdapters:
    """Nothing for any row: for counting."""
    return RowAdapters()


@dataclass(frozen=True)
class EvaluationContext:
    """The inputs of evaluations: denoisers by model, and encoded prompts, each of one row."""

    networks: Mapping[str, Denoiser]
    conditionings: Mapping[PromptKey, Conditioning]
    max_forward_rows: int | None = None
    """Most rows of one forward; None: as many as there are."""
    adapters: AdaptersOfRow = LoadedAdapters().of_row
    """The adapters of a row."""
    oom_batch_limit: dict[tuple[str, torch.Size], int] = field(default_factory=dict[tuple[str, torch.Size], int])
    """Rows for which a GPU's memory sufficed once it had not, by model and shape of latent: found while running."""


class Count(NamedTuple):
    """Work of the network: rows (evaluations of one latent under one prompt) and calls."""

    evaluations: int = 0
    forwards: int = 0
    shared: int = 0
    """Rows that were not evaluated, because an equal one was."""
    control_rows: int = 0
    """Rows that a ControlNet answered beside the network, once for each ControlNet of a row."""
    outside: Fraction = Fraction(0)
    """Work that windows save, in evaluations of a whole canvas; a fraction, so that sums do not depend on order."""

    @property
    def canvases(self) -> Fraction:
        """The work of all rows in evaluations of a whole canvas: the sum of their shares of its area."""
        return self.evaluations - self.outside

    def plus(self, other: Count) -> Count:
        return Count(
            self.evaluations + other.evaluations,
            self.forwards + other.forwards,
            self.shared + other.shared,
            self.control_rows + other.control_rows,
            self.outside + other.outside,
        )


def evaluate(requests: Sequence[Request], context: EvaluationContext) -> tuple[list[DenoisedPrediction], Count]:
    """One guided prediction per request, from the distinct rows in one forward per model and shape of its inputs.

    Prompts of several lengths share it if their family says that shorter ones may be repeated.

    Rows with the same latent, window, level, model, adapters, prompts and embedded scale are evaluated once: regions
    that share a negative prompt share that row. Rows with different adapters or numbers of prompts, and windows of one
    shape, share a forward; those of a model that takes one place for all rows, if it is one. Forwards that exceed
    `max_forward_rows`, or for which memory does not suffice, are split.

    Outside of a request's window the predictions are 0, the mean of clean latents: the participant has no weight
    there, and its solver's memory stays finite.
    """
    rows_by_request = [request.rows() for request in requests]
    distinct: dict[_Identity, Row] = {}
    for row in (row for rows in rows_by_request for row in rows):
        distinct.setdefault(_identity(row), row)
    answers: dict[_Identity, Latent] = {}
    total = Count(shared=sum(map(_pictures, rows_by_request)) - _pictures(distinct.values()))
    groups: dict[tuple[str, torch.Size, Window | None, Layout], dict[_Identity, Row]] = {}
    for identity, row in distinct.items():
        place = row.window if row.one_place else None
        kind = (row.prompt.model, _visible_latent(row).shape[1:], place, _conditioning_of(row, context).layout)
        groups.setdefault(kind, {})[identity] = row
    for group in (part for rows_of_kind in groups.values() for part in _stackable(rows_of_kind, context)):
        denoised, count = _run_forwards(list(group.values()), context)
        answers |= dict(zip(group, denoised, strict=True))
        total = total.plus(count)
    guided = [
        request.guidance.combine([answers[_identity(row)] for row in rows])
        for rows, request in zip(rows_by_request, requests, strict=True)
    ]
    return guided, total


_Identity = tuple[int, Window | None, Level, PromptKey, float | None, AdapterKeys, tuple[tuple[PromptKey, int], ...]]


def _identity(row: Row) -> _Identity:
    """Two rows with the same identity get the same answer; tensors are compared as objects, not by value."""
    shares = tuple((share.key, id(share.weight)) for share in row.shares)
    return id(row.x), row.window, row.level, row.prompt, row.guidance, row.adapters, shares


def _stackable(group: dict[_Identity, Row], context: EvaluationContext) -> Iterable[dict[_Identity, Row]]:
    """The rows of a group, split where the lengths of their prompts have no small common multiple."""
    lengths = {identity: _conditioning_of(row, context).lengths for identity, row in group.items()}
    parts: list[list[tuple[int, ...]]] = []
    for length in sorted(set(lengths.values())):
        part = next((part for part in parts if stackable([*part, length])), None)
        if part is None:
            parts.append([length])
        else:
            part.append(length)
    return [{identity: row for identity, row in group.items() if lengths[identity] in part} for part in parts]


def _conditioning_of(row: Row, context: EvaluationContext) -> Conditioning:
    """The network's inputs for a row beside its latent and level."""
    row_tensors: dict[str, Tensor] = {}
    if row.guidance is not None:
        row_tensors[GUIDANCE] = torch.tensor([row.guidance], dtype=torch.float32)
    if row.window is not None:
        row_tensors[PLACE] = torch.tensor([[row.window.top, row.window.left, *_lattice(row)]])
    conditioning = context.conditionings[row.prompt]
    return conditioning.joined(Conditioning(row_tensors)) if row_tensors else conditioning


def _visible_latent(row: Row) -> Tensor:
    """What the network sees of a row's latent [b, c, h, w]: all of it, or its window."""
    return row.x if row.window is None else row.window.cut(row.x)


def _on_canvas(row: Row, denoised: Tensor) -> Latent:
    """The network's prediction for a row, put back into the canvas."""
    return denoised if row.window is None else row.window.paste(denoised, _lattice(row))


def _adapters(row: Row, context: EvaluationContext) -> RowAdapters:
    """The loaded adapters of a row and the prompts that share it, as its window shows them."""
    prompts = tuple(RowPrompt(context.conditionings[share.key], share.weight) for share in row.shares)
    adapters = context.adapters(row.prompt.model, row.adapters)._replace(prompts=prompts)
    return adapters if row.window is None else adapters.within(row.window, _lattice(row))


def _outside(row: Row) -> Fraction:
    """The share of the canvas that a row leaves out, times its pictures."""
    return Fraction(0) if row.window is None else row.x.shape[0] * (1 - row.window.share(_lattice(row)))


def _lattice(row: Row) -> Lattice:
    return row.x.shape[2], row.x.shape[3]


def _pictures(rows: Iterable[Row]) -> int:
    return sum(row.x.shape[0] for row in rows)


def _run_forwards(rows: Sequence[Row], context: EvaluationContext) -> tuple[list[Latent], Count]:
    """The denoised latents of rows of one model and of inputs of one shape. A row of n pictures is n network rows."""
    pictures = [row.x.shape[0] for row in rows]
    x = torch.cat([_visible_latent(row) for row in rows])
    levels = [row.level for row, count in zip(rows, pictures, strict=True) for _ in range(count)]
    conditioning = stack([_conditioning_of(row, context).repeated(n) for row, n in zip(rows, pictures, strict=True)])
    model = rows[0].prompt.model
    row_adapters = [_adapters(row, context) for row in rows]
    adapters = [adapter for adapter, count in zip(row_adapters, pictures, strict=True) for _ in range(count)]
    network, kind = context.networks[model], (model, x.shape[1:])
    most = min(context.max_forward_rows or len(x), context.oom_batch_limit.get(kind, len(x)))
    parts, first = list[Rows](), 0
    while first < len(x):
        part = slice(first, first + most)
        try:
            # A network of a family without adapters is never asked for any.
            adapter_args = (adapters[part],) if any(map(any, adapters[part])) else ()
            parts.append(network(x[part], levels[part], conditioning.rows(part), *adapter_args))
            first += most
        except torch.OutOfMemoryError:
            if most == 1:
                raise
            most = context.oom_batch_limit[kind] = -(-most // 2)
    control_rows = sum(row.adapters.num_every_step * count for row, count in zip(rows, pictures, strict=True))
    outside = sum(map(_outside, rows), Fraction(0))
    denoised = torch.cat(parts).split(pictures)
    on_canvas = [_on_canvas(row, prediction) for row, prediction in zip(rows, denoised, strict=True)]
    return on_canvas, Count(len(x), len(parts), control_rows=control_rows, outside=outside)
