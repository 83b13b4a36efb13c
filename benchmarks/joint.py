"""Joint against sequential composition, side by side: `python -m benchmarks.joint [--json FILE]`.

The same job in both, 256 x 256 pixels, 20 steps of Euler of which 2 are the base's alone, guidance on, R
regions that leave a rim to the base; a network of about 20 M parameters. One warm-up, then the two in
turn; the median counts. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.networks import Timed, large_unet
from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext
from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS, Conditioning
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.sampling_core.planning.compile import compose
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import beta_levels

LEVELS = beta_levels("epsilon")
REGIONS = (1, 2, 4, 8)
COMPOSITIONS = ("joint", "sequential")
CELLS = 32
GRIDS = {1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (2, 4)}
BARS = {"joint / sequential at R = 4": 0.65, "joint / network": 1.03}


def job(composition: str, count: int) -> RenderJob:
    """R rectangles in a grid, with a rim between them."""
    rows, columns = GRIDS[count]
    regions = [
        {
            "prompt": f"region {i}",
            "mask": {
                "x": (i % columns) / columns + 0.03,
                "y": (i // columns) / rows + 0.03,
                "width": 1 / columns - 0.06,
                "height": 1 / rows - 0.06,
            },
        }
        for i in range(count)
    ]
    fields = {"prompt": "base", "negative_prompt": "negative", "cfg": 4.0, "sampler": "euler", "scheduler": "normal"}
    fields |= {"width": 8 * CELLS, "height": 8 * CELLS, "base_only_steps": 2, "composition": composition}
    return parse_job(fields | {"regions": regions})


def compose_run(composition: str, count: int) -> SamplingRun[Any]:
    render_job = job(composition, count)
    resolved = resolve(render_job)
    return compose(resolved, {render_job.model: LEVELS}, torch.zeros(1, 4, CELLS, CELLS), region_masks(resolved, {}, 8))


def measure(run: SamplingRun[Any], network: Timed) -> tuple[float, float, Count]:
    """Seconds of a whole run, seconds inside the network, and its rows and forwards."""
    embeddings = torch.randn(len(run.prompts), 1, 20, 32, generator=torch.Generator().manual_seed(1))
    conditionings = {
        key: Conditioning({PROMPT_EMBEDS: embedding}) for key, embedding in zip(run.prompts, embeddings, strict=True)
    }
    context = EvaluationContext({"embedded": network}, conditionings)
    network.seconds, total = 0.0, Count()
    start = time.perf_counter()
    for _, count in iterate(run, run.initial_state(), context):
        total = total.plus(count)
    return time.perf_counter() - start, network.seconds, total


def peak_megabytes(composition: str, count: int) -> float:
    """The most memory that a process of its own held, beyond what it held before the run."""
    command = [sys.executable, "-m", "benchmarks.joint", "--memory-of", composition, str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _print_memory(composition: str, count: int) -> None:
    network = Timed(UNetDenoiser(large_unet(), LEVELS))
    run = compose_run(composition, count)
    # Loading libraries held more than the run does: Linux forgets its peak for a 5.
    Path("/proc/self/clear_refs").write_text("5")
    rss_before = _kilobytes("VmRSS")
    measure(run, network)
    print((_kilobytes("VmHWM") - rss_before) / 1024)


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def compare(count: int, network: Timed, repeats: int) -> dict[str, Any]:
    """The figures of R = `count`."""
    runs = {name: compose_run(name, count) for name in COMPOSITIONS}
    walls: dict[str, list[float]] = {name: [] for name in COMPOSITIONS}
    inside: dict[str, list[float]] = {name: [] for name in COMPOSITIONS}
    counts: dict[str, Count] = {}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            wall, seconds, counts[name] = measure(run, network)
            if repeat > 0:
                walls[name].append(wall)
                inside[name].append(wall / seconds)
    figures: dict[str, Any] = {}
    for name in COMPOSITIONS:
        figures[name] = {
            "seconds": round(statistics.median(walls[name]), 3),
            "over_network": round(statistics.median(inside[name]), 4),
            "rows": counts[name].evaluations,
            "forwards": counts[name].forwards,
            "peak_megabytes": round(peak_megabytes(name, count), 1),
        }
    figures["wall_ratio"] = round(figures["joint"]["seconds"] / figures["sequential"]["seconds"], 3)
    figures["row_ratio"] = round(figures["joint"]["rows"] / figures["sequential"]["rows"], 3)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each (default 3)")
    parser.add_argument("--memory-of", nargs=2, metavar=("COMPOSITION", "R"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.memory_of:
        _print_memory(options.memory_of[0], int(options.memory_of[1]))
        return 0
    network = Timed(UNetDenoiser(large_unet(), LEVELS))
    figures = {f"R = {count}": compare(count, network, options.repeats) for count in REGIONS}
    for name, comparison in figures.items():
        joint, sequential = comparison["joint"], comparison["sequential"]
        print(
            f"{name}: joint {joint['seconds']:.2f} s, sequential {sequential['seconds']:.2f} s, "
            f"ratio {comparison['wall_ratio']:.2f}, of rows {comparison['row_ratio']:.2f}; "
            f"wall / network {joint['over_network']:.3f} and {sequential['over_network']:.3f}; "
            f"peak {joint['peak_megabytes']:.0f} and {sequential['peak_megabytes']:.0f} MB"
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    fast_enough = figures["R = 4"]["wall_ratio"] <= BARS["joint / sequential at R = 4"]
    low_overhead = all(f["joint"]["over_network"] <= BARS["joint / network"] for f in figures.values())
    return 0 if fast_enough and low_overhead else 1


if __name__ == "__main__":
    sys.exit(main())
