"""How much of a picture's time is in the network, and peak memory: `python -m benchmarks.models [--json FILE]`.

Jobs of four regions on Stable Diffusion XL and FLUX.1 with random weights, drawn by the body of the flow `render`, with
and without `torch.compile`, each in a process of its own. On a GPU the networks have their published widths, and the
canvas 1024 x 1024 pixels; on a processor a share of both that it carries, which the output says. Text encoders have two
layers.

A first job loads the model (and compiles); the second one is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BAR = 0.95
"""Least share of the sampling that is in the network."""
GPU = {"share": 1.0, "size": 1024, "steps": 20, "dtype": "bfloat16"}
PROCESSOR = {"share": 0.125, "size": 256, "steps": 4, "dtype": "float32"}


def job(model: str, size: int, steps: int, seed: int) -> dict[str, Any]:
    """Four regions, one in each quarter."""
    regions = [
        {"prompt": f"region {i}", "mask": {"x": i % 2 / 2, "y": i // 2 / 2, "width": 0.5, "height": 0.5}}
        for i in range(4)
    ]
    fields = {"model": model, "prompt": "a base", "width": size, "height": size, "steps": steps, "seed": seed}
    return fields | {"sampler": "euler", "base_only_steps": 1, "regions": regions}


def measure(family: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Figures of one family in this process, whose settings are in its environment."""
    import torch

    from benchmarks import random_models
    from prefect_regional_diffusion.flows.drawing.draw_job import draw_job
    from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
    from prefect_regional_diffusion.tasks.inputs.path_policy import trust_caller
    from prefect_regional_diffusion.tasks.machine.devices import device_name
    from prefect_regional_diffusion.tasks.runtime.guarded_parts import GuardedDenoiser

    on_gpu, network_seconds = torch.cuda.is_available(), [0.0]
    original_call = GuardedDenoiser.__call__

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        answer = original_call(*args, **kwargs)
        if on_gpu:
            torch.cuda.synchronize()
        network_seconds[0] += time.perf_counter() - start
        return answer

    GuardedDenoiser.__call__ = timed  # pyright: ignore[reportAttributeAccessIssue]
    write = {"sdxl": random_models.write_sdxl, "flux": random_models.write_flux}[family]
    with tempfile.TemporaryDirectory() as place, trust_caller():
        widths, dtype = random_models.Widths(sizes["share"]), getattr(torch, sizes["dtype"])
        model = write(Path(place) / family, widths, dtype)

        def draw(seed: int) -> dict[str, Any]:
            render_job = parse_job(job(model, sizes["size"], sizes["steps"], seed))
            return asyncio.run(draw_job(render_job, sizes["steps"], f"{place}/store", f"{place}/out"))

        first = draw(1)
        network_seconds[0] = 0.0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        second = draw(2)
    sampling = second["seconds"]["sample"]
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "device": device_name(),
        "rows": second["evaluations"],
        "forwards": second["forwards"],
        "sampling_seconds": sampling,
        "network_share_of_sampling": round(network_seconds[0] / sampling, 4),
        "whole_seconds": round(sum(second["seconds"].values()), 2),
        "first_job_seconds": round(sum(first["seconds"].values()), 2),
        "peak_gigabytes": round(peak / 1e9, 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--families", nargs="+", default=["sdxl", "flux"], choices=["sdxl", "flux"])
    parser.add_argument("--compile", nargs="+", default=["off", "default"], metavar="MODE", help="off, default, ...")
    for name, kind in (("share", float), ("size", int), ("steps", int)):
        parser.add_argument(f"--{name}", type=kind, help="instead of what suits the machine")
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "SETTINGS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options.one[0], json.loads(options.one[1]))))
        return
    import torch

    sizes = dict(GPU if torch.cuda.is_available() else PROCESSOR)
    sizes |= {name: value for name in ("share", "size", "steps") if (value := getattr(options, name)) is not None}
    print(f"widths are {sizes['share']:g} of the published ones; {sizes['size']} x {sizes['size']} pixels, "
          f"{sizes['steps']} steps, {sizes['dtype']}")  # fmt: skip
    figures: dict[str, Any] = {"settings": sizes}
    for family in options.families:
        for mode in options.compile:
            name = f"{family}, compile {mode}"
            command = [sys.executable, "-m", "benchmarks.models", "--one", family, json.dumps(sizes)]
            environment = os.environ | {"REGIONAL_COMPILE": mode, "REGIONAL_DTYPE": str(sizes["dtype"])}
            process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            figures[name] = json.loads(process.stdout.splitlines()[-1])
            print(f"{name}: {figures[name]}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if torch.cuda.is_available():
        low = [name for name, case in figures.items() if case.get("network_share_of_sampling", 1) < BAR]
        sys.exit(f"less than {BAR:.0%} of sampling in the network: {', '.join(low)}" if low else 0)


if __name__ == "__main__":
    main()
