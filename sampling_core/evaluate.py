"""All open queries of a step, answered in as few network rows and forwards as possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from sampling_core._types import Embedding, RowEmbeddings, Rows
from sampling_core.guidance import Guidance, Row
from sampling_core.levels import Level
from sampling_core.solvers.base import Prediction, Query


@runtime_checkable
class Network(Protocol):
    """A denoiser: answers a batch of rows, each at its own level, with denoised predictions."""

    def __call__(self, x: Rows, levels: Sequence[Level], embeddings: RowEmbeddings) -> Rows: ...


class Networks(NamedTuple):
    """What a run is evaluated with: networks by model name, embeddings by prompt."""

    networks: Mapping[str, Network]
    embeddings: Mapping[str, Embedding]


class Count(NamedTuple):
    """What was asked of the network: rows (evaluations of one latent under one prompt) and calls."""

    evaluations: int = 0
    forwards: int = 0

    def plus(self, other: Count) -> Count:
        return Count(self.evaluations + other.evaluations, self.forwards + other.forwards)


def evaluate(
    asked: Sequence[tuple[Query, Guidance]], network: Network, embeddings: Mapping[str, Embedding]
) -> tuple[list[Prediction], Count]:
    """One guided prediction per query, in one forward over the distinct rows.

    Rows with the same latent, level and prompt are evaluated once: regions that share a negative
    prompt share that row.
    """
    wanted = [guidance.expand(query) for query, guidance in asked]
    distinct: dict[tuple[int, Level, str], Row] = {}
    for row in (row for rows in wanted for row in rows):
        distinct.setdefault(_identity(row), row)
    rows = list(distinct.values())
    pictures = [row.x.shape[0] for row in rows]
    answer = network(
        torch.cat([row.x for row in rows]),
        [row.level for row, count in zip(rows, pictures, strict=True) for _ in range(count)],
        torch.cat([embeddings[row.prompt].expand(n, -1, -1) for row, n in zip(rows, pictures, strict=True)]),
    )
    answers = dict(zip(distinct, answer.split(pictures), strict=True))
    guided = [
        guidance.combine([answers[_identity(row)] for row in rows])
        for rows, (_, guidance) in zip(wanted, asked, strict=True)
    ]
    return guided, Count(sum(pictures), 1)


def _identity(row: Row) -> tuple[int, Level, str]:
    """Two rows with the same identity get the same answer; latents are compared as objects, not by value."""
    return id(row.x), row.level, row.prompt
