"""Training canvases: whole scenes, and collages in which a caption speaks for one region only.

A model that only ever saw whole scenes believes that a canvas has one background, and paints the
wrong colour into regions. So a collage shows two or three other scenes side by side plus a rectangle
or an ellipse with the captioned scene, and the loss counts only there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from training.scenes import CELL, Coverage, Picture, Scene, all_scenes, draw, held_out, rgb

SCENES = [scene for scene in all_scenes() if not held_out(scene)]


@dataclass(frozen=True)
class Canvas:
    """A picture, its caption, and what each latent cell [height / 8, width / 8] counts in the loss.

    Nothing where the caption does not speak, 1 on the background, more on the shape: it is small, and its
    colour is the word that was missed most often.
    """

    picture: Picture
    caption: str
    weight: Coverage


SHAPE_WEIGHT = 4.0


def weights(picture: Picture, scene: Scene, spoken: Coverage) -> Coverage:
    """The weights of a canvas whose caption speaks of `scene` where `spoken` [rows, columns] is 1."""
    shape = (np.abs(picture - rgb(scene.background)) > 0.05).any(axis=-1)
    rows, columns = spoken.shape
    share = shape.reshape(rows, CELL, columns, CELL).mean(axis=(1, 3), dtype=np.float32)
    return spoken * (1 + (SHAPE_WEIGHT - 1) * share)


def random_scene(rng: np.random.Generator) -> Scene:
    scene = SCENES[rng.integers(len(SCENES))]
    return Scene(scene.background) if rng.random() < 0.12 else scene


def place(scene: Scene, rng: np.random.Generator, size: tuple[int, int], box: tuple[int, int, int, int]) -> Picture:
    """The scene on a canvas of `size` pixels, its shape inside `box` (top, left, bottom, right; pixels)."""
    top, left, bottom, right = box
    extent = min(bottom - top, right - left)
    radius = extent * rng.uniform(0.34, 0.41)
    slack_y, slack_x = (bottom - top) / 2 - radius, (right - left) / 2 - radius
    center = (
        (top + bottom) / 2 + slack_y * rng.uniform(-0.25, 0.25),
        (left + right) / 2 + slack_x * rng.uniform(-0.25, 0.25),
    )
    return draw(scene, *size, center, radius)


def whole(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """One scene over all of the canvas (sizes in pixels)."""
    scene = random_scene(rng)
    picture = place(scene, rng, (height, width), (0, 0, height, width))
    spoken = np.ones((height // CELL, width // CELL), np.float32)
    return Canvas(picture, scene.caption, weights(picture, scene, spoken))


def collage(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Scenes side by side and one captioned region over them (sizes in pixels)."""
    picture = np.empty((height, width, 3), np.float32)
    strips = rng.integers(1, 4)
    upright = rng.random() < 0.5
    length = width if upright else height
    cuts = np.linspace(0, length // CELL, strips + 1).round().astype(int) * CELL
    for start, stop in pairwise(cuts.tolist()):
        box = (0, start, height, stop) if upright else (start, 0, stop, width)
        part = place(random_scene(rng), rng, (height, width), box)
        picture[box[0] : box[2], box[1] : box[3]] = part[box[0] : box[2], box[1] : box[3]]

    rows, columns = height // CELL, width // CELL
    region_h, region_w = (int(rng.integers(max(4, round(n * 0.33)), n + 1)) for n in (rows, columns))
    top, left = int(rng.integers(rows - region_h + 1)), int(rng.integers(columns - region_w + 1))
    spoken = np.zeros((rows, columns), np.float32)
    ellipse = rng.random() < 0.3
    if ellipse:
        y = (np.arange(rows) + 0.5 - top - region_h / 2)[:, None] / (region_h / 2)
        x = (np.arange(columns) + 0.5 - left - region_w / 2)[None, :] / (region_w / 2)
        spoken[x * x + y * y <= 1] = 1
    else:
        spoken[top : top + region_h, left : left + region_w] = 1
    scene = random_scene(rng)
    # An ellipse leaves less room than its bounding box, so its shape goes into the middle.
    shrink = 0.12 if ellipse else 0.0
    box = (
        round((top + region_h * shrink) * CELL),
        round((left + region_w * shrink) * CELL),
        round((top + region_h * (1 - shrink)) * CELL),
        round((left + region_w * (1 - shrink)) * CELL),
    )
    captioned = place(scene, rng, (height, width), box)
    inside = np.kron(spoken, np.ones((CELL, CELL), np.float32))[..., None]
    picture = np.where(inside > 0, captioned, picture)
    return Canvas(picture, scene.caption, weights(picture, scene, spoken))
