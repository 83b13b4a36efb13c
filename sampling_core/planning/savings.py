"""What a run does not evaluate, and why: for people who wonder at a plan."""

from __future__ import annotations

from typing import Any

from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun


def savings(run: SamplingRun[Any], shared_rows: int) -> list[str]:
    """One line for each reason. `shared_rows` is what driving the run found (`Cost.shared_rows`)."""
    shared = (
        f"{shared_rows} rows that participants share (same latent, level, model, LoRAs, controls and prompt) count once"
    )
    return [*([shared] if shared_rows else []), *run.savings()]
