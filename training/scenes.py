"""The world that the embedded model knows: one textured shape on a plain background.

Pictures are numpy arrays [height, width, 3], float32 in [0, 1], sizes in pixels. Textures lie on the
canvas' own 8-pixel lattice (a latent cell), so that a texture never depends on where a region begins.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.float32]
Coverage = npt.NDArray[np.float32]

CELL = 8
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 150, 60),
    "cyan": (60, 210, 220),
    "blue": (35, 75, 205),
    "purple": (130, 50, 170),
    "black": (25, 25, 30),
}
INK = (250, 250, 250)
TEXTURES = ("plain", "striped", "checkered", "dotted")
SHAPES = ("circle", "square", "triangle", "cross")


@dataclass(frozen=True)
class Scene:
    """A background colour and, unless `shape` is empty, a textured shape on it."""

    background: str
    color: str = ""
    texture: str = ""
    shape: str = ""

    @property
    def caption(self) -> str:
        if not self.shape:
            return f"a {self.background} background"
        return f"a {self.color} {self.texture} {self.shape} on a {self.background} background"


def all_scenes() -> list[Scene]:
    """Every scene with a shape; the shape never has the background's colour."""
    return [
        Scene(background, color, texture, shape)
        for background, color, texture, shape in product(PALETTE, PALETTE, TEXTURES, SHAPES)
        if background != color
    ]


def held_out(scene: Scene) -> bool:
    """True for one captioned scene in eight: training never draws it, the benchmark draws only these."""
    return hashlib.sha256(scene.caption.encode()).digest()[0] % 8 == 0


def vocabulary() -> list[str]:
    """Every word that a caption can hold."""
    return sorted({"a", "on", "background", *PALETTE, *TEXTURES, *SHAPES})


def shape_coverage(
    shape: str, height: int, width: int, center: tuple[float, float], radius: float, oversample: int = 2
) -> Coverage:
    """How much of each pixel the shape covers, [height, width] in [0, 1].

    `center` is (y, x) and `radius` half the shape's extent, in pixels.
    """
    ys = (np.arange(height * oversample) + 0.5) / oversample - center[0]
    xs = (np.arange(width * oversample) + 0.5) / oversample - center[1]
    y, x = ys[:, None] / radius, xs[None, :] / radius
    match shape:
        case "circle":
            inside = x * x + y * y <= 1
        case "square":
            inside = np.maximum(abs(x), abs(y)) <= 0.9
        case "triangle":
            inside = (y <= 0.9) & (abs(x) <= (y + 0.95) / 1.85)
        case "cross":
            inside = (np.minimum(abs(x), abs(y)) <= 0.34) & (np.maximum(abs(x), abs(y)) <= 1)
        case _:
            raise ValueError(f"shape {shape!r}: allowed are {', '.join(SHAPES)}")
    fine = inside.reshape(height, oversample, width, oversample)
    return fine.mean(axis=(1, 3), dtype=np.float32)


def texture_ink(texture: str, height: int, width: int) -> Coverage:
    """How much of each pixel the texture paints white, [height, width] in [0, 1]."""
    row, column = np.arange(height)[:, None] // CELL, np.arange(width)[None, :] // CELL
    match texture:
        case "plain":
            ink = np.zeros((height, width))
        case "striped":
            ink = np.broadcast_to(row % 2, (height, width))
        case "checkered":
            ink = (row + column) % 2
        case "dotted":
            y = np.arange(height)[:, None] % CELL - (CELL - 1) / 2
            x = np.arange(width)[None, :] % CELL - (CELL - 1) / 2
            ink = (row % 2) * (column % 2) * (x * x + y * y <= 14)
        case _:
            raise ValueError(f"texture {texture!r}: allowed are {', '.join(TEXTURES)}")
    return np.asarray(ink, dtype=np.float32)


def rgb(name: str) -> Picture:
    """A palette colour as [3] float32 in [0, 1]."""
    return np.asarray(PALETTE[name], dtype=np.float32) / np.float32(255)


def draw(scene: Scene, height: int, width: int, center: tuple[float, float], radius: float) -> Picture:
    """The scene on a canvas of height x width pixels; geometry as in `shape_coverage`."""
    canvas = np.broadcast_to(rgb(scene.background), (height, width, 3))
    if not scene.shape:
        return canvas.copy()
    ink = texture_ink(scene.texture, height, width)[..., None]
    paint = rgb(scene.color) * (1 - ink) + np.asarray(INK, dtype=np.float32) / 255 * ink
    cover = shape_coverage(scene.shape, height, width, center, radius)[..., None]
    return (canvas * (1 - cover) + paint * cover).astype(np.float32)
