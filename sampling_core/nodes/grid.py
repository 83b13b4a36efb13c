"""MaskGridNKSamplersAdvanced: a mask tile repeated over rows and columns, and one picture per cell."""

from __future__ import annotations

from typing import Literal

import torch

from sampling_core._types import AnyMask, Latent
from sampling_core.errors import BadInput
from sampling_core.evaluate import Count
from sampling_core.nodes.calls import Call, Networks, Setting, ksampler
from sampling_core.nodes.masks import PIXELS_PER_CELL

ForkMode = Literal["Sample then Fork", "Fork then Sample"]


def mask_grid(
    setting: Setting,
    call: Call,
    latent: Latent,
    tile: AnyMask,
    using: Networks,
    *,
    rows: int = 1,
    columns: int = 3,
    mode: ForkMode = "Sample then Fork",
    denoise: float = 1.0,
) -> tuple[Latent, Count]:
    """Latents [rows * columns * b, c, h, w], cell by cell from the top left; `tile` [H, W] is one cell's mask.

    `Sample then Fork` samples once under the whole grid, and each output takes its own cell of the first
    picture from that. `Fork then Sample` samples once per cell, under that cell's mask alone.
    Raises BadInput for an unknown mode, and for a grid that does not fit the canvas.
    """
    height, width = tile.shape
    canvas = (latent.shape[2] * PIXELS_PER_CELL, latent.shape[3] * PIXELS_PER_CELL)
    if mode == "Sample then Fork":
        grid = tile.repeat(rows, columns)
        if tuple(grid.shape) != canvas:
            raise BadInput("mask", f"{grid.shape[1]} x {grid.shape[0]} pixels of grid", _fits("exactly", canvas))
        sampled, count = ksampler(setting, call._replace(mask=grid), latent, using, denoise)
        return torch.cat([_cell(latent, sampled, r, c, tile) for r in range(rows) for c in range(columns)]), count
    if mode != "Fork then Sample":
        raise BadInput("mode", mode, "Sample then Fork, Fork then Sample")
    if height * rows > canvas[0] or width * columns > canvas[1]:
        raise BadInput("mask", f"{width * columns} x {height * rows} pixels of grid", _fits("at most", canvas))
    total, forks = Count(), list[Latent]()
    for r in range(rows):
        for c in range(columns):
            mask = torch.zeros(canvas)
            mask[height * r : height * (r + 1), width * c : width * (c + 1)] = tile
            fork, count = ksampler(setting, call._replace(mask=mask), latent, using, denoise)
            forks.append(fork)
            total = total.plus(count)
    return torch.cat(forks), total


def _cell(latent: Latent, sampled: Latent, row: int, column: int, tile: AnyMask) -> Latent:
    """The latent with one cell of the first sampled picture; cells are cut to whole latent cells."""
    height, width = (side // PIXELS_PER_CELL for side in tile.shape)
    fork = latent.clone()
    where = (0, slice(None), slice(height * row, height * (row + 1)), slice(width * column, width * (column + 1)))
    fork[where] = sampled[where]
    return fork


def _fits(how: str, canvas: tuple[int, int]) -> str:
    return f"a tile that repeats to {how} the canvas, {canvas[1]} x {canvas[0]} pixels"
