"""What each method draws of layouts, and at what cost: `python -m benchmarks.layouts [--json FILE]`.

Partitions, boxes with gaps and boxes that overlap, 1 to 16 of them on a square canvas. Every box has a scene, a
sampler and guidance of its own; all methods draw the same layouts at the same seeds. What is read in the pictures is in
`benchmarks/layouts/scores.py`. Evaluations are of the canvas, a step. Seconds are of one thread's sampling: the wall
time on a machine that does nothing else. Errors are standard errors over layouts. With all methods, a layout of 16
regions takes a quarter of an hour: choose.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from PIL import Image

from benchmarks.layouts.figures import Figure, bars, figures, table, values
from benchmarks.layouts.methods import METHODS, Measured, Method, measure, refusal
from benchmarks.layouts.scenes import GRIDS, KINDS, Layout, random_layout
from benchmarks.whole_model import embedded_model

NAMES = tuple(method.name for method in METHODS)


def layouts(kind: str, count: int, edge: int, number: int) -> list[Layout]:
    """The first layouts of their kind: the same ones whatever else is measured."""
    rng = random.Random(f"{kind} {count} {edge}")
    return [random_layout(rng, kind, count, edge) for _ in range(number)]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well, and each layout's")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="keep pictures, those of a layout side by side")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--regions", nargs="+", type=int, default=[*GRIDS], choices=[*GRIDS], help="how many")
    parser.add_argument("--methods", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--layouts", type=int, default=2, help="of each kind and number (default 2)")
    parser.add_argument("--edge", type=int, default=512, help="of the canvas in pixels (default 512)")
    parser.add_argument("--steps", type=int, default=20)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    torch.set_num_threads(1)
    example, methods = layouts("partition", 4, options.edge, 1)[0], list[Method]()
    for method in (method for method in METHODS if method.name in options.methods):
        reason = refusal(method, example, options.steps)
        if reason is None:
            methods.append(method)
        else:
            print(f"{method.name} is left out: {reason}")
    model, report, passed = embedded_model(), dict[str, object](), True
    for kind, count in product(options.kinds, options.regions):
        title, of_methods = f"{kind}, {count} regions", {m.name: list[dict[str, float]]() for m in methods}
        for i, layout in enumerate(layouts(kind, count, options.edge, options.layouts)):
            drawn = {m.name: measure(model, m, layout, options.steps) for m in methods}
            for name, measured in drawn.items():
                of_methods[name].append(values(measured))
            if options.pictures:
                options.pictures.mkdir(parents=True, exist_ok=True)
                _side_by_side([*drawn.values()]).save(options.pictures / f"{kind}-{count}-{i}.png")
            report[title] = {"figures": _means(of_methods), "layouts": of_methods}
            if options.json:
                options.json.write_text(json.dumps(report, indent=2).replace("NaN", "null") + "\n")
        print(table(title, _means(of_methods)), flush=True)
        if {"whole", "windows"} <= of_methods.keys() and (kind, count) == ("partition", 16):
            for bar, holds in bars(of_methods["windows"], of_methods["whole"]).items():
                print(f"{'passed' if holds else 'FAILED'}: {bar}")
                passed &= holds
    return 0 if passed else 1


def _means(of_methods: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Figure]]:
    return {name: figures(of_layouts) for name, of_layouts in of_methods.items()}


def _side_by_side(drawn: Sequence[Measured]) -> Image.Image:
    """The pictures of a layout, a method after the other."""
    pictures = [Image.fromarray(measured.picture) for measured in drawn]
    gap, (width, height) = 8, pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + gap) - gap, height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i * (width + gap), 0))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
