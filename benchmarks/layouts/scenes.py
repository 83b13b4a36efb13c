"""Layouts: boxes on a canvas, each with the scene that it shall show."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np

from benchmarks.reading import Mask
from training.scenes import CELL, PALETTE, Scene, all_scenes, held_out

KINDS = ("partition", "gaps", "overlaps")
GRIDS = {1: (1, 1), 2: (1, 2), 4: (2, 2), 9: (3, 3), 16: (4, 4)}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"sampler": "euler", "cfg": 1.5},
    {"sampler": "dpmpp_2m", "cfg": 2.0},
    {"sampler": "euler_ancestral", "cfg": 1.5},
    {"sampler": "deis", "cfg": 3.0},
)
"""Regions take these in turn: every method evaluates once a step."""


class Box(NamedTuple):
    """An upright rectangle in pixels, at multiples of a latent cell."""

    top: int
    left: int
    bottom: int
    right: int


class Layout(NamedTuple):
    """Boxes on a square canvas with `edge` pixels; later ones lie over earlier ones. Outside is the base's colour."""

    kind: str
    edge: int
    boxes: tuple[Box, ...]
    scenes: tuple[Scene, ...]
    base: str
    seed: int
    changed: tuple[int, Scene]
    """The region whose prompt is another in the second picture, and what it then asks for."""

    def job(self, steps: int, *, prompts_only: bool = False, second: bool = False) -> dict[str, Any]:
        """A job, without what a method adds. With `prompts_only`, regions differ in nothing else."""
        index, scene = self.changed
        scenes = [scene if second and i == index else shown for i, shown in enumerate(self.scenes)]
        regions = [
            {"prompt": shown.caption, "mask": self._mask(box)} | ({} if prompts_only else SETTINGS[i % len(SETTINGS)])
            for i, (box, shown) in enumerate(zip(self.boxes, scenes, strict=True))
        ]
        canvas = {"width": self.edge, "height": self.edge, "steps": steps, "seed": self.seed}
        base = {"prompt": Scene(self.base).caption, "base_only_steps": 1, **SETTINGS[0]}
        return base | canvas | {"regions": regions}

    def owners(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Which region each pixel shows [edge, edge]; -1: the base."""
        owners = np.full((self.edge, self.edge), -1)
        for i, box in enumerate(self.boxes):
            owners[box.top : box.bottom, box.left : box.right] = i
        return owners

    def far_from_changed(self, pixels: int) -> Mask:
        """Pixels [edge, edge] that are farther than this from the region whose prompt changes."""
        top, left, bottom, right = self.boxes[self.changed[0]]
        far = np.ones((self.edge, self.edge), dtype=np.bool_)
        far[max(0, top - pixels) : bottom + pixels, max(0, left - pixels) : right + pixels] = False
        return far

    def _mask(self, box: Box) -> dict[str, float]:
        top, left, bottom, right = (value / self.edge for value in box)
        return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def random_layout(rng: random.Random, kind: str, count: int, edge: int) -> Layout:
    """A grid of `count` boxes: as it is, with sides up to a sixth short of it, or a tenth over it."""
    rows, columns = GRIDS[count]
    boxes = tuple(_box(rng, kind, (i // columns, i % columns), (rows, columns), edge) for i in range(count))
    scenes = [scene for scene in all_scenes() if held_out(scene)]
    index = rng.randrange(count)
    shown = tuple(rng.choice(scenes) for _ in boxes)
    other = rng.choice([scene for scene in scenes if scene.background != shown[index].background])
    return Layout(kind, edge, boxes, shown, rng.choice(list(PALETTE)), rng.getrandbits(64), (index, other))


def _box(rng: random.Random, kind: str, place: tuple[int, int], grid: tuple[int, int], edge: int) -> Box:
    sides: list[int] = []
    for index, count in zip(place, grid, strict=True):
        for end, inwards in ((index, 1), (index + 1, -1)):
            within = {"partition": 0.0, "gaps": rng.uniform(0.06, 0.16), "overlaps": rng.uniform(-0.1, -0.02)}[kind]
            exact = edge * (end + inwards * within) / count
            sides.append(min(edge, max(0, round(exact / CELL) * CELL)))
    top, bottom, left, right = sides
    return Box(top, left, bottom, right)
