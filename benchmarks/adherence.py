"""How often the embedded model draws what the prompt says: `python -m benchmarks.adherence [--json FILE]`.

Whole canvases: 240 pairs of a prompt and a seed. The prompts are captions that training held out, so
it saw neither the pairs nor the combinations. Regions: 60 jobs with 2 to 4 regions. A rule-based
reader judges the finished 8-bit pictures.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.reading import read_scene
from benchmarks.whole_model import WholeModel, load_whole, run_on
from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from training.scenes import Scene, all_scenes, held_out

WHOLE_CANVASES = 240
REGION_JOBS = 60
SIZES = ((128, 128), (128, 128), (192, 128), (128, 192), (192, 192), (256, 128), (256, 256))
BARS = {
    "background colour": 0.98,
    "object colour": 0.95,
    "texture and shape": 0.85,
    "region colour": 0.95,
}


class Drawing(NamedTuple):
    """A picture, uint8 [height, width, 3], the work of its network, and the seconds of its sampling.

    Seconds are of the processor: of one thread, the wall time on a machine that does nothing else.
    """

    picture: np.ndarray[Any, np.dtype[np.uint8]]
    cost: Count
    seconds: float


def draw_timed(job: RenderJob, model: WholeModel, max_forward_rows: int | None = None) -> Drawing:
    """The picture of a job, and what it took."""
    run = run_on(model.checkpoint, job)
    conditionings = {key: model.text_encoder.encode(key.prompt) for key in run.prompts}
    context = EvaluationContext({job.model: model.denoiser}, conditionings, max_forward_rows)
    state, cost, start = run.initial_state(), Count(), time.process_time()
    for reached, step_cost in iterate(run, state, context):
        state, cost = reached, cost.plus(step_cost)
    seconds = time.process_time() - start
    return Drawing(model.autoencoder.decode(run.final_latents(state))[0].numpy(), cost, seconds)


def draw(job: RenderJob, model: WholeModel, max_forward_rows: int | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The picture of a job, uint8 [height, width, 3]."""
    return draw_timed(job, model, max_forward_rows).picture


def whole_canvas_jobs(rng: random.Random) -> list[tuple[Scene, RenderJob]]:
    scenes = [scene for scene in all_scenes() if held_out(scene)]
    job_scenes = [rng.choice(scenes) for _ in range(WHOLE_CANVASES)]
    jobs: list[tuple[Scene, RenderJob]] = []
    for scene in job_scenes:
        width, height = rng.choice(SIZES)
        jobs.append(
            (
                scene,
                RenderJob.model_validate(
                    {"prompt": scene.caption, "width": width, "height": height, "seed": rng.getrandbits(64)}
                ),
            )
        )
    return jobs


def region_jobs(rng: random.Random) -> list[tuple[list[Scene], RenderJob]]:
    """Columns, rows or a grid of 2 to 4 regions that leave a rim to the base; neighbours differ in colour."""
    scenes = [scene for scene in all_scenes() if held_out(scene)]
    jobs: list[tuple[list[Scene], RenderJob]] = []
    for _ in range(REGION_JOBS):
        count = rng.randint(2, 4)
        grid = {2: [(1, 2), (2, 1)], 3: [(1, 3), (3, 1)], 4: [(2, 2)]}[count]
        rows, columns = rng.choice(grid)
        region_scenes: list[Scene] = []
        while len(region_scenes) < count:
            scene = rng.choice(scenes)
            if all(scene.background != other.background for other in region_scenes):
                region_scenes.append(scene)
        base = rng.choice([s.background for s in scenes if all(s.background != c.background for c in region_scenes)])
        regions = [
            {"prompt": scene.caption, "mask": _tile(i // columns, i % columns, rows, columns)}
            for i, scene in enumerate(region_scenes)
        ]
        job = RenderJob.model_validate(
            {
                "prompt": f"a {base} background",
                "width": 96 * columns if columns > 1 else 128,
                "height": 96 * rows if rows > 1 else 128,
                "seed": rng.getrandbits(64),
                "base_only_steps": 1,
                "regions": regions,
            }
        )
        jobs.append((region_scenes, job))
    return jobs


def _tile(row: int, column: int, rows: int, columns: int) -> dict[str, float]:
    rim = 0.02
    return {
        "x": column / columns + rim,
        "y": row / rows + rim,
        "width": 1 / columns - 2 * rim,
        "height": 1 / rows - 2 * rim,
    }


def measure(model: WholeModel, worst: Path | None = None) -> dict[str, float]:
    """The four shares. With `worst`, pictures whose reading differs from their prompt are saved in that folder."""
    rng = random.Random(20261121)
    matches: Counter[str] = Counter()
    for i, (scene, job) in enumerate(whole_canvas_jobs(rng)):
        picture = draw(job, model)
        reading = read_scene(picture)
        matches["background colour"] += reading.background == scene.background
        matches["object colour"] += reading.color == scene.color
        matches["texture and shape"] += (reading.texture, reading.shape) == (scene.texture, scene.shape)
        matches["texture"] += reading.texture == scene.texture
        matches["shape"] += reading.shape == scene.shape
        if reading != scene:
            _save_picture(worst, picture, f"{i:03d} {scene.caption} SEEN {reading.caption}")
        _show_progress(i + 1, WHOLE_CANVASES, "whole canvases")
    shares = {name: matches[name] / WHOLE_CANVASES for name in (*list(BARS)[:3], "texture", "shape")}

    num_regions = background_matches = object_matches = 0
    for i, (scenes, job) in enumerate(region_jobs(rng)):
        picture = draw(job, model)
        cell = model.checkpoint.facts.vae_scale_factor
        masks = region_masks(resolve(job), {}, cell)
        for scene, mask in zip(scenes, masks, strict=True):
            pixels = np.kron(mask.numpy() > 0.99, np.ones((cell,) * 2)) > 0
            ys, xs = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
            reading = read_scene(picture[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1])
            num_regions += 1
            background_matches += reading.background == scene.background
            object_matches += reading.color == scene.color
            if reading.background != scene.background:
                _save_picture(worst, picture, f"region {i:03d} {scene.caption} SEEN {reading.caption}")
        _show_progress(i + 1, REGION_JOBS, "jobs with regions")
    return shares | {
        "region colour": background_matches / num_regions,
        "region object colour": object_matches / num_regions,
    }


def _save_picture(folder: Path | None, picture: np.ndarray[Any, np.dtype[np.uint8]], name: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{name}.png")


def _show_progress(done: int, total: int, unit: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total} {unit} ", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--worst", type=Path, metavar="DIR", help="keep pictures that were read as something else")
    parser.add_argument("--model", default="embedded", help="a model folder (default: the embedded one)")
    options = parser.parse_args(arguments)
    shares = measure(load_whole(open_folder(options.model)), options.worst)
    for name, share in shares.items():
        bar = f"  (bar: {BARS[name]:.0%})" if name in BARS else ""
        print(f"{name + ' right':28} {share:6.1%}{bar}")
    if options.json:
        options.json.write_text(json.dumps(shares, indent=2) + "\n")
    return 0 if all(shares[name] >= bar for name, bar in BARS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
