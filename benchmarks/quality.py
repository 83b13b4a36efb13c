"""Joint against sequential composition on the embedded model: `python -m benchmarks.quality [--json FILE]`.

The same jobs in both at the same seeds: 2 to 4 soft and overlapping regions, RegionalSampler for sequential.
Lower is better for all but the first figure:

- region colour right: background of a region, read where no other region is
- seam: gradient energy in the 16 pixels around region edges over that of bands as wide 24 pixels inside
- residual noise: what is left at the end with a denoiser that knows the answer, in units of the latent
- change outside: mean difference (0 to 255) beyond a region when only that region's prompt is another
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import max_pool2d

from benchmarks.adherence import draw
from benchmarks.reading import main_color
from sampling_core._types import Embedding, PixelMask, RowEmbeddings, Rows
from sampling_core.evaluate import Networks
from sampling_core.job import RenderJob
from sampling_core.levels import Level
from sampling_core.models.folder import open_folder
from sampling_core.models.loading import Model, load
from sampling_core.parsing import parse_job
from sampling_core.plan import compose
from sampling_core.region_masks import region_masks
from training.scenes import PALETTE, Scene, all_scenes

JOBS = 100
COMPOSITIONS = ("joint", "sequential")
FIGURES = ("region colour right", "seam", "residual noise", "change outside")


def jobs(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Job data without a composition: regions in a row or a grid that overlap, with feathered edges."""
    made: list[dict[str, Any]] = []
    for _ in range(count):
        number = rng.randint(2, 4)
        rows, columns = {2: rng.choice([(1, 2), (2, 1)]), 3: rng.choice([(1, 3), (3, 1)]), 4: (2, 2)}[number]
        colors = rng.sample(list(PALETTE), number + 1)
        regions = [
            {
                "prompt": _caption(rng, color),
                "mask": _tile(rng, i // columns, i % columns, rows, columns),
                "feather": rng.choice([8, 16, 24]),
            }
            for i, color in enumerate(colors[1:])
        ]
        made.append(
            {
                "prompt": f"a {colors[0]} background",
                "width": 96 * columns if columns > 1 else 128,
                "height": 96 * rows if rows > 1 else 128,
                "seed": rng.getrandbits(64),
                "base_only_steps": 1,
                "regions": regions,
            }
        )
    return made


def _caption(rng: random.Random, background: str) -> str:
    if rng.random() < 0.5:
        return Scene(background).caption
    return rng.choice([scene for scene in all_scenes() if scene.background == background]).caption


def _tile(rng: random.Random, row: int, column: int, rows: int, columns: int) -> dict[str, float]:
    """A cell of a grid that reaches up to a tenth of the canvas into its neighbours, or stops short of them."""
    grow = [rng.uniform(-0.04, 0.1) for _ in range(4)]
    left, right = max(0.0, column / columns - grow[0]), min(1.0, (column + 1) / columns + grow[1])
    top, bottom = max(0.0, row / rows - grow[2]), min(1.0, (row + 1) / rows + grow[3])
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def composed_as(composition: str, data: dict[str, Any]) -> RenderJob:
    return parse_job(data | {"composition": composition})


def hard_masks(data: dict[str, Any]) -> list[PixelMask]:
    """The regions in pixels, their feather left out."""
    bare = [region | {"feather": 0} for region in data["regions"]]
    return list(region_masks(composed_as("sequential", data | {"regions": bare}), {}, 8))


def measure(model: Model, data: dict[str, Any], composition: str) -> tuple[dict[str, list[float]], Any]:
    """The figures of one job in one composition, and its picture."""
    job = composed_as(composition, data)
    picture = draw(job, model)
    masks = hard_masks(data)
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    for i, mask in enumerate(masks):
        others = torch.stack([other for j, other in enumerate(masks) if j != i]).amax(dim=0)
        alone = (_grown(1 - mask, 12) == 0) & (_grown(others, 12) == 0)
        if bool(alone.any()):
            wanted = data["regions"][i]["prompt"].split(" on a ")[-1].removeprefix("a ").split()[0]
            figures["region colour right"].append(float(main_color(picture, alone.numpy()) == wanted))
    figures["seam"].append(_seam(picture, masks))
    figures["residual noise"].append(residual(job, model))
    changed = data | {"regions": [*data["regions"][:-1], data["regions"][-1] | {"prompt": data["prompt"]}]}
    other = draw(composed_as(composition, changed), model)
    far = (_grown(masks[-1], 16) == 0).numpy()
    if far.any():
        figures["change outside"].append(float(np.abs(picture.astype(float) - other.astype(float))[far].mean()))
    return figures, picture


def _grown(mask: PixelMask, pixels: int) -> PixelMask:
    return max_pool2d(mask[None, None], 2 * pixels + 1, stride=1, padding=pixels)[0, 0]


def _seam(picture: np.ndarray[Any, np.dtype[np.uint8]], masks: Sequence[PixelMask]) -> float:
    light = torch.from_numpy(picture).float().mean(dim=-1)
    energy = torch.zeros_like(light)
    energy[:-1] += (light[1:] - light[:-1]).square()
    energy[:, :-1] += (light[:, 1:] - light[:, :-1]).square()
    edge, inside = torch.zeros_like(light, dtype=torch.bool), torch.zeros_like(light, dtype=torch.bool)
    for mask in masks:
        edge |= (_grown(mask, 8) > 0) & (_grown(1 - mask, 8) > 0)
        inside |= (_grown(1 - mask, 16) == 0) & (_grown(1 - mask, 32) > 0)
    inside &= ~edge
    # A hundredth of a grey level: bands that are perfectly flat would otherwise divide by nothing.
    return float(energy[edge].mean() / (energy[inside].mean() + 0.01)) if bool(inside.any()) else float("nan")


class _KnowsTheAnswer:
    """Every clean latent is zero, so all of x is noise."""

    def __call__(self, x: Rows, levels: Sequence[Level], embeddings: RowEmbeddings) -> Rows:
        return torch.zeros_like(x)


def residual(job: RenderJob, model: Model) -> float:
    folder = model.folder
    empty = torch.zeros(1, folder.latent_channels, job.height // folder.cell, job.width // folder.cell)
    run = compose(job, {job.model: folder.levels}, empty, region_masks(job, {}, folder.cell))
    encoded: dict[str, Embedding] = {words.prompt: torch.zeros(1, 1, 1) for words in run.prompts}
    *_, (last, _) = run.iterate(run.begin(), Networks({job.model: _KnowsTheAnswer()}, {job.model: encoded}))
    return float(run.pictures(last).square().mean().sqrt())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--worst", type=Path, metavar="FILE", help="the worst pictures of each, side by side")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"how many jobs (default {JOBS})")
    given = parser.parse_args(arguments)
    model = load(open_folder("embedded"), "cpu", torch.float32)
    found: dict[str, dict[str, list[float]]] = {name: {f: [] for f in FIGURES} for name in COMPOSITIONS}
    seen: list[tuple[list[float], list[Any]]] = []
    for i, data in enumerate(jobs(random.Random(4), given.jobs)):
        pictures: list[Any] = []
        wrong: list[float] = []
        for name in COMPOSITIONS:
            figures, picture = measure(model, data, name)
            for figure, values in figures.items():
                found[name][figure] += values
            pictures.append(picture)
            wrong.append(sum(1 - right for right in figures["region colour right"]))
        wrong = [
            sum(1 - v for v in found[name]["region colour right"][-len(data["regions"]) :]) for name in COMPOSITIONS
        ]
        seen.append((wrong, pictures))
        if sys.stderr.isatty():
            print(f"\r{i + 1}/{given.jobs} ", end="", file=sys.stderr, flush=True)
    means = {name: {f: float(np.nanmean(values)) for f, values in figures.items()} for name, figures in found.items()}
    print(f"{'':22}" + "".join(f"{name:>12}" for name in COMPOSITIONS))
    for figure in FIGURES:
        print(f"{figure:22}" + "".join(f"{means[name][figure]:12.4f}" for name in COMPOSITIONS))
    if given.json:
        given.json.write_text(json.dumps(means, indent=2) + "\n")
    if given.worst:
        worst = [pair for side in (0, 1) for pair in sorted(seen, key=lambda entry: -entry[0][side])[:4]]
        _sheet(worst, given.worst)
    better = [means["joint"][f] <= means["sequential"][f] for f in FIGURES[1:]]
    return 0 if all(better) and means["joint"][FIGURES[0]] >= means["sequential"][FIGURES[0]] else 1


def _sheet(worst: Sequence[tuple[list[float], list[Any]]], file: Path) -> None:
    """Joint above, sequential below; the four worst of joint, then the four worst of sequential."""
    sheet = Image.new("RGB", (200 * len(worst), 400), "white")
    for column, (_, pictures) in enumerate(worst):
        for row, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            image.thumbnail((192, 192))
            sheet.paste(image, (200 * column + 4, 200 * row + 4))
    sheet.save(file)


if __name__ == "__main__":
    sys.exit(main())
