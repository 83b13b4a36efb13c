"""What a run does not evaluate, and why: for people who wonder at a plan."""

from __future__ import annotations

from typing import Any

from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun
from prefect_regional_diffusion.sampling_core.planning.compile import Cost


def savings(run: SamplingRun[Any], cost: Cost) -> list[str]:
    """One line for each reason. `cost` is what driving the run found."""
    found: list[str] = []
    if cost.shared_rows:
        found.append(
            f"{cost.shared_rows} rows that participants share (same latent, level, model, LoRAs, controls and prompt) "
            "count once"
        )
    if cost.canvases < cost.evaluations:
        work = f"{float(cost.canvases):.4g} evaluations of the canvas"
        found.append(f"{cost.evaluations} rows are the work of {work}: in windows, the network sees a part of it")
    return [*found, *run.savings()]
