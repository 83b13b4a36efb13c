"""What a run does not evaluate, and why: for people who wonder at a plan."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import Sequential
from prefect_regional_diffusion.sampling_core.engine.sampling_run import Composition, Joint


def savings(run: Composition[object], shared_rows: int) -> list[str]:
    """One line for each reason. `shared_rows` is what driving the run found (`Cost.shared_rows`)."""
    found: list[str] = []
    if shared_rows:
        found.append(f"{shared_rows} rows that participants share (same latent, level, model and prompt) count once")
    if isinstance(run, Joint):
        hidden = sum(0 not in run.plan.active(step) for step in range(run.steps))
        if hidden:
            found.append(f"in {hidden} of {run.steps} steps the regions cover the canvas: the base is not evaluated")
        unguided = [p.name for p in run.plan.participants if len(p.guidance.prompts) == 1]
        if unguided:
            found.append(f"guidance is off (cfg 1), so there are no negative rows: {', '.join(unguided)}")
    if isinstance(run, Sequential):
        masks = [stage.planned.call.mask for stage in run.stages]
        empty = sum(mask is not None and not bool(mask.any()) for mask in masks)
        if empty:
            found.append(f"{empty} of {len(masks)} passes have an empty mask: they are not evaluated")
    return found
