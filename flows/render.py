"""Flow `render`: one job, from its masks to a PNG; started again after a crash, it goes on where it was."""

# No `from __future__ import annotations`: Prefect builds the form from the flow's annotations, and cannot resolve text.
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from prefect_regional_diffusion.flows.common.results import NO_RESULTS
from prefect_regional_diffusion.flows.common.run_names import named_after
from prefect_regional_diffusion.flows.drawing.draw_job import draw_job
from prefect_regional_diffusion.sampling_core.job.forms import JointJob
from prefect_regional_diffusion.tasks.machine.prefect_logs import make_logs_plain
from prefect_regional_diffusion.tasks.machine.settings import Keep

make_logs_plain()

CheckpointSteps = Annotated[int | None, Field(ge=1, le=1000)]
Name = Annotated[str, Field(max_length=80)]


@flow(name="render", flow_run_name=named_after("render"), persist_result=False, result_storage=NO_RESULTS)
async def render(
    job: JointJob,
    checkpoint_steps: CheckpointSteps = None,
    store: str | None = None,
    out: str | None = None,
    name: Name = "render",
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Draw one picture from a base prompt and regions with prompts of their own.

    Prefect's form shows what follows beside the fields. It has no fields for ComfyUI's nodes: those are in the form of
    `original-node`. A job file with `composition: sequential` may be sent to either.

    Args:
        job: What to draw: a prompt for the whole canvas, and regions with prompts of their own.
        checkpoint_steps: The state is saved after so many steps. Empty: about every second.
        store: Where latents are kept: a folder or an fsspec URL. Empty: where the worker keeps them.
        out: Folder for the finished picture. Empty: where the worker puts them.
        name: Start of the picture's file name.
        keep: Which states stay in the store. Empty: as the worker is set up.

    Returns:
        The record, with the places of the pictures and of the store. It is also written as JSON beside the
        pictures, with their names alone.
    """
    return await draw_job(job, checkpoint_steps, store, out, name, keep)
