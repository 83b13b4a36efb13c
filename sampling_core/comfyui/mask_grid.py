"""MaskGridNKSamplersAdvanced: a mask tile repeated over rows and columns, and one picture per cell."""

from __future__ import annotations

import torch

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import KSamplerCall
from prefect_regional_diffusion.sampling_core.comfyui.masks import PIXELS_PER_CELL, on_lattice
from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import LatentBox
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask


def mask_grid(
    call: KSamplerCall,
    shape: Shape,
    tile: AnyMask,
    *,
    rows: int = 1,
    columns: int = 3,
    mode: str = "Sample then Fork",
) -> tuple[list[KSamplerCall], tuple[LatentBox, ...]]:
    """The calls on a latent of `shape`, and the cells to cut its result into; `tile` [H, W] is one cell's mask.

    They are `call` under other masks.

    `Sample then Fork` samples once under the whole grid, and each picture takes its own cell of the first
    one from that. `Fork then Sample` samples once per cell, under that cell's mask alone.
    Raises BadInput for an unknown mode, and for a grid that does not fit the canvas.
    """
    height, width = tile.shape
    # Cells are cut to whole latent cells.
    cells = tuple(
        (_nth(row, height // PIXELS_PER_CELL), _nth(column, width // PIXELS_PER_CELL))
        for row in range(rows)
        for column in range(columns)
    )
    canvas = (shape[2] * PIXELS_PER_CELL, shape[3] * PIXELS_PER_CELL)
    if mode == "Sample then Fork":
        grid = tile.repeat(rows, columns)
        if tuple(grid.shape) != canvas:
            raise BadInput("mask", f"{grid.shape[1]} x {grid.shape[0]} pixels of grid", _fits("exactly", canvas))
        return [call._replace(mask=on_lattice(grid, shape[2:]))], cells
    if mode != "Fork then Sample":
        raise BadInput("mode", mode, "Sample then Fork, Fork then Sample")
    if height * rows > canvas[0] or width * columns > canvas[1]:
        raise BadInput("mask", f"{width * columns} x {height * rows} pixels of grid", _fits("at most", canvas))
    calls: list[KSamplerCall] = []
    for row in range(rows):
        for column in range(columns):
            mask = torch.zeros(canvas)
            mask[_nth(row, height), _nth(column, width)] = tile
            calls.append(call._replace(mask=on_lattice(mask, shape[2:]), fork=True))
    return calls, cells


def _nth(number: int, length: int) -> slice:
    return slice(length * number, length * (number + 1))


def _fits(extent: str, canvas: tuple[int, int]) -> str:
    return f"a tile that repeats to {extent} the canvas, {canvas[1]} x {canvas[0]} pixels"
