"""Joint, with windows too, against sequential composition: `python -m benchmarks.quality [--json FILE]`.

The same jobs in all on the embedded model, at the same seeds: 2 to 4 soft regions that overlap each other or leave
some of the base. Sequential is RegionalSampler as it is set up: it grows every mask by its overlap factor, 10 pixels.
All use Euler, which is what sequential makes of every deterministic multistep method, because it starts anew at each
step.

Lower is better for all but the first figure:

- region colour right: background of a region, read where no other region is
- seam: gradient energy in the 16 pixels around region edges over that of bands as wide 24 pixels inside,
  both summed over all pictures
- residual noise: what is left at the end with a denoiser that knows the answer, in units of the latent
- change outside: mean difference (0 to 255) further than 32 pixels from a region (a feathered and grown mask
  reaches 26) when only that region's prompt is another, with its standard error. Told beside it: the change inside,
  and the leak, which is the one over the other. A region that is not drawn changes nothing anywhere.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import max_pool2d

from benchmarks.adherence import draw
from benchmarks.reading import main_color
from benchmarks.whole_model import WholeModel, embedded_model, run_on
from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import EvaluationContext
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.tensors.types import PixelMask, Rows
from training.scenes import PALETTE, Scene, all_scenes

JOBS = 100
COMPOSITIONS: dict[str, dict[str, Any]] = {
    "joint": {"composition": "joint"},
    "windows": {"composition": "joint", "window": {"margin": 0}},
    "sequential": {"composition": "sequential"},
}
FIGURES = ("region colour right", "seam", "residual noise", "change outside")
TOLD = (*FIGURES, "+-", "change inside", "leak")


class Measured(NamedTuple):
    """One job in one composition: its picture, and what the figures are made of."""

    picture: np.ndarray[Any, np.dtype[np.uint8]]
    right: list[float]
    """For each region that can be read."""
    edge: tuple[float, int]
    """Sum of the gradient energy, and over how many pixels."""
    inside: tuple[float, int]
    residual: float
    changes: tuple[float, float] | None
    """Inside and outside; None where no pixel is far enough."""


def jobs(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Job data without a composition: regions in a row or a grid that mostly overlap, with feathered edges."""
    job_data: list[dict[str, Any]] = []
    for _ in range(count):
        number = rng.randint(2, 4)
        rows, columns = {2: rng.choice([(1, 2), (2, 1)]), 3: rng.choice([(1, 3), (3, 1)]), 4: (2, 2)}[number]
        colors = rng.sample(list(PALETTE), number + 1)
        regions = [
            {
                "prompt": _caption(rng, color),
                "mask": _tile(rng, i // columns, i % columns, rows, columns),
                "feather": rng.choice([16, 24, 32]),
            }
            for i, color in enumerate(colors[1:])
        ]
        job_data.append(
            {
                "prompt": f"a {colors[0]} background",
                "width": 96 * columns if columns > 1 else 128,
                "height": 96 * rows if rows > 1 else 128,
                "seed": rng.getrandbits(64),
                "base_only_steps": 1,
                "sampler": "euler",
                "regions": regions,
            }
        )
    return job_data


def _caption(rng: random.Random, background: str) -> str:
    if rng.random() < 0.5:
        return Scene(background).caption
    return rng.choice([scene for scene in all_scenes() if scene.background == background]).caption


def _tile(rng: random.Random, row: int, column: int, rows: int, columns: int) -> dict[str, float]:
    """A rectangle or an ellipse in a cell of a grid, up to a tenth of the canvas over its sides or short of them."""
    grow = [rng.uniform(-0.04, 0.1) for _ in range(4)]
    left, right = max(0.0, column / columns - grow[0]), min(1.0, (column + 1) / columns + grow[1])
    top, bottom = max(0.0, row / rows - grow[2]), min(1.0, (row + 1) / rows + grow[3])
    width, height = right - left, bottom - top
    if rng.random() < 0.5:
        middle = {"center_x": left + width / 2, "center_y": top + height / 2}
        return middle | {"radius_x": width / 2, "radius_y": height / 2}
    return {"x": left, "y": top, "width": width, "height": height}


def composed_as(composition: str, data: dict[str, Any]) -> RenderJob:
    return parse_job(data | COMPOSITIONS[composition])


def hard_masks(data: dict[str, Any]) -> list[PixelMask]:
    """The regions in pixels, their feather left out."""
    bare = [region | {"feather": 0} for region in data["regions"]]
    return list(region_masks(resolve(composed_as("sequential", data | {"regions": bare})), {}, 8))


def measure(model: WholeModel, data: dict[str, Any], composition: str) -> Measured:
    """One job in one composition."""
    job = composed_as(composition, data)
    picture = draw(job, model)
    masks = hard_masks(data)
    right: list[float] = []
    for i, mask in enumerate(masks):
        others = torch.stack([other for j, other in enumerate(masks) if j != i]).amax(dim=0)
        unshared = (_grown(1 - mask, 12) == 0) & (_grown(others, 12) == 0)
        if bool(unshared.any()):
            expected_color = data["regions"][i]["prompt"].split(" on a ")[-1].removeprefix("a ").split()[0]
            right.append(float(main_color(picture, unshared.numpy()) == expected_color))
    changed = data | {"regions": [*data["regions"][:-1], data["regions"][-1] | {"prompt": data["prompt"]}]}
    other = draw(composed_as(composition, changed), model)
    near, far = (_grown(1 - masks[-1], 12) == 0).numpy(), (_grown(masks[-1], 32) == 0).numpy()
    change = np.abs(picture.astype(float) - other.astype(float))
    changes = (float(change[near].mean()), float(change[far].mean())) if far.any() and near.any() else None
    return Measured(picture, right, *_seam(picture, masks), residual(job, model), changes)


def _grown(mask: PixelMask, pixels: int) -> PixelMask:
    return max_pool2d(mask[None, None], 2 * pixels + 1, stride=1, padding=pixels)[0, 0]


def _seam(
    picture: np.ndarray[Any, np.dtype[np.uint8]], masks: Sequence[PixelMask]
) -> tuple[tuple[float, int], tuple[float, int]]:
    """Gradient energy around the edges of regions, and in bands inside: its sum and the number of pixels."""
    light = torch.from_numpy(picture).float().mean(dim=-1)
    energy = torch.zeros_like(light)
    energy[:-1] += (light[1:] - light[:-1]).square()
    energy[:, :-1] += (light[:, 1:] - light[:, :-1]).square()
    edge, inside = torch.zeros_like(light, dtype=torch.bool), torch.zeros_like(light, dtype=torch.bool)
    for mask in masks:
        edge |= (_grown(mask, 8) > 0) & (_grown(1 - mask, 8) > 0)
        inside |= (_grown(1 - mask, 16) == 0) & (_grown(1 - mask, 32) > 0)
    inside &= ~edge
    return (float(energy[edge].sum()), int(edge.sum())), (float(energy[inside].sum()), int(inside.sum()))


class _KnowsTheAnswer:
    """Every clean latent is zero, so all of x is noise."""

    def __call__(
        self, x: Rows, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Rows:
        return torch.zeros_like(x)


def residual(job: RenderJob, model: WholeModel) -> float:
    run = run_on(model.checkpoint, job)
    context = EvaluationContext({job.model: _KnowsTheAnswer()}, dict.fromkeys(run.prompts, Conditioning({})))
    *_, (last, _) = iterate(run, run.initial_state(), context)
    return float(run.final_latents(last).square().mean().sqrt())


def figures(measured: Sequence[Measured]) -> dict[str, float]:
    """The figures of many jobs in one composition."""
    right = [value for job in measured for value in job.right]
    edge, inside = (
        sum(energy for energy, _ in bands) / sum(pixels for _, pixels in bands)
        for bands in ([job.edge for job in measured], [job.inside for job in measured])
    )
    residuals = [job.residual for job in measured]
    inner, outer = np.array([job.changes for job in measured if job.changes is not None]).T
    error = outer.std(ddof=1) / len(outer) ** 0.5
    values = (np.mean(right), edge / inside, np.mean(residuals), outer.mean())
    return dict(zip(TOLD, map(float, (*values, error, inner.mean(), outer.sum() / inner.sum())), strict=True))


_model: list[WholeModel] = []


def _load() -> None:
    torch.set_num_threads(1)
    _model.append(embedded_model())


def _measured(compositions: Sequence[str], data: dict[str, Any]) -> dict[str, Measured]:
    return {composition: measure(_model[0], data, composition) for composition in compositions}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--worst", type=Path, metavar="FILE", help="the worst pictures of each, side by side")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"how many jobs (default {JOBS})")
    parser.add_argument("--compositions", nargs="+", default=[*COMPOSITIONS], choices=[*COMPOSITIONS])
    parser.add_argument("--processes", type=int, default=2, help="how many at once, one thread each (default 2)")
    options = parser.parse_args(arguments)
    names: list[str] = options.compositions
    results: list[dict[str, Measured]] = []
    with ProcessPoolExecutor(options.processes, get_context("spawn"), _load) as pool:
        for result in pool.map(partial(_measured, names), jobs(random.Random(4), options.jobs)):
            results.append(result)
            if sys.stderr.isatty():
                print(f"\r{len(results)}/{options.jobs} ", end="", file=sys.stderr, flush=True)
    table = {name: figures([result[name] for result in results]) for name in names}
    print(f"{'':20}" + "".join(f"{name:>12}" for name in names))
    for figure in TOLD:
        print(f"{figure:20}" + "".join(f"{table[name][figure]:12.4f}" for name in names))
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")
    if options.worst:
        _sheet(results, options.worst)
    if "sequential" not in names:
        return 0
    return 0 if all(_better(table[name], table["sequential"]) for name in names if name != "sequential") else 1


def _better(joint: dict[str, float], sequential: dict[str, float]) -> bool:
    """Whether joint composition is at least as good in every figure that has a direction."""
    lower = all(joint[figure] <= sequential[figure] for figure in FIGURES[1:])
    return lower and joint[FIGURES[0]] >= sequential[FIGURES[0]]


def _sheet(results: Sequence[dict[str, Measured]], file: Path) -> None:
    """A column per job, a row per composition: the four worst of each composition, by regions that are wrong."""

    def wrong(result: dict[str, Measured], name: str) -> tuple[float, float]:
        measured = result[name]
        return sum(1 - value for value in measured.right), measured.edge[0] / measured.edge[1]

    names = list(results[0])
    worst = [
        result for name in names for result in sorted(results, key=lambda result: wrong(result, name), reverse=True)[:4]
    ]
    sheet = Image.new("RGB", (136 * len(worst), 136 * len(names)), "white")
    for column, result in enumerate(worst):
        for row, name in enumerate(names):
            image = Image.fromarray(result[name].picture)
            image.thumbnail((128, 128))
            sheet.paste(image, (136 * column + 4, 136 * row + 4))
    sheet.save(file)


if __name__ == "__main__":
    sys.exit(main())
