"""Flow `original-node`: what one of five ComfyUI nodes draws, from the same seed. The work is that of `render`."""

# No `from __future__ import annotations`: see render.py.
from typing import Any

from prefect import flow

from prefect_regional_diffusion.flows.common.results import NO_RESULTS
from prefect_regional_diffusion.flows.common.run_names import named_after
from prefect_regional_diffusion.flows.drawing.draw_job import draw_job
from prefect_regional_diffusion.flows.render import CheckpointSteps, Name
from prefect_regional_diffusion.sampling_core.job.forms import EXAMPLE, NodeJob
from prefect_regional_diffusion.tasks.machine.settings import Keep


@flow(name="original-node", flow_run_name=named_after("original-node"), persist_result=False, result_storage=NO_RESULTS)
async def original_node(
    job: NodeJob = EXAMPLE,
    checkpoint_steps: CheckpointSteps = None,
    store: str | None = None,
    out: str | None = None,
    name: Name = "original-node",
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Draw what a ComfyUI node for regional sampling draws from the same seed; submitted as it is, an example.

    Args:
        job: What to draw, and by which node. RegionalSampler and RegionalSamplerAdvanced take one region or more;
            TwoSamplersForMask and TwoAdvancedSamplersForMask take one; MaskGridNKSamplersAdvanced takes none: remove
            the region.
        checkpoint_steps: The state is saved after so many steps. Empty: about every second.
        store: Where latents are kept: a folder or an fsspec URL. Empty: where the worker keeps them.
        out: Folder for the finished pictures. Empty: where the worker puts them.
        name: Start of the pictures' file names.
        keep: Which states stay in the store. Empty: as the worker is set up.

    Returns:
        The record, as `render` returns it.
    """
    return await draw_job(job, checkpoint_steps, store, out, name, keep)
