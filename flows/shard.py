"""Flow `shard`: several jobs in one process, with one loaded model and in the same forwards."""

# No `from __future__ import annotations`: see render.py.
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from prefect_regional_diffusion.flows.common.results import NO_RESULTS
from prefect_regional_diffusion.flows.common.run_names import named_after
from prefect_regional_diffusion.flows.drawing.draw_shard import draw_shard
from prefect_regional_diffusion.flows.render import CheckpointSteps, Name
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.sharding import MOST_PER_SHARD
from prefect_regional_diffusion.tasks.machine.settings import Keep


@flow(name="shard", flow_run_name=named_after("shard"), persist_result=False, result_storage=NO_RESULTS)
async def shard(
    jobs: Annotated[list[NamedJob], Field(min_length=1, max_length=MOST_PER_SHARD)],
    checkpoint_steps: CheckpointSteps = None,
    store: str | None = None,
    keep: Keep | None = None,
    name: Name = "",
) -> dict[str, Any]:
    """Draw some cells of a grid or jobs of a batch. Started by the flows `grid` and `batch`, which merge the pictures.

    Args:
        jobs: What to draw, each under a name for people.
        checkpoint_steps: States are saved after so many steps. Empty: about every second; of more than four jobs,
            less often.
        store: Where latents and pictures are kept. Empty: where the worker keeps them.
        keep: Which states stay in the store. Empty: as the worker is set up. Those at branch points stay in any case:
            other shards go on from them. The flow that started the shards removes them, when all are drawn.
        name: What the run is called, for people.

    Returns:
        How many jobs were `drawn` and how many `found` finished, what it cost, and the `seconds` by stage.
    """
    return await draw_shard(jobs, checkpoint_steps, store, keep)
