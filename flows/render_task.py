"""Rendering as a task of somebody's own flow."""

from __future__ import annotations

from prefect import task

from prefect_regional_diffusion.flows.api import RenderResult, pictures_in
from prefect_regional_diffusion.flows.drawing.draw_job import draw_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.tasks.machine.prefect_logs import make_logs_plain

make_logs_plain()


@task(name="render a regional job", persist_result=False)
async def render_task(
    job: RenderJob, store: str | None = None, out: str | None = None, name: str = "render"
) -> RenderResult:
    """A job drawn as a task of somebody's own flow: `await render_task(job)`.

    What happens in it is seen as task runs of that flow. As with the flow `render`, `store` and `out` are this
    machine's where they are left out, and jobs name only what the settings (`REGIONAL_ASSET_ROOTS`,
    `REGIONAL_ALLOWED_STORES`, `REGIONAL_ALLOWED_OUTPUTS`) allow, because a flow's parameters may come over
    a server. Raises what `arender` raises.
    """
    record = await draw_job(job, None, store, out, name)
    return RenderResult(pictures_in(record), record)
