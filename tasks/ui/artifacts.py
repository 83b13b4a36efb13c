"""Artifacts of a run in progress: its plan, a progress bar, and a preview of the picture."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Sequence
from uuid import UUID

from PIL import Image
from torch.nn.functional import interpolate

from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.secrets import reason_of
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.machine.task import in_flow_run
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from prefect_regional_diffusion.tasks.runtime.run_batch import RunBatch
from prefect_regional_diffusion.tasks.runtime.run_progress import RunProgress
from prefect_regional_diffusion.tasks.ui.contact_sheet import sheet
from prefect_regional_diffusion.tasks.ui.prefect_artifacts import (
    create_image,
    create_markdown,
    create_progress,
    update_image,
    update_progress,
)
from prefect_regional_diffusion.tasks.ui.preview import as_data_uri
from prefect_regional_diffusion.tasks.ui.progress_words import PROGRESS, progress_words

logger = plain_logger(__name__)

BAR_SECONDS = 2.0
PREVIEW_CELLS = 64
"""Longest edge of a preview, in latent cells: decoding the whole of a large canvas would take as long as a step.
Of several pictures, as many are shown as have no more cells together than a square of this edge."""


async def best_effort(work: Awaitable[object]) -> None:
    """Await a best-effort update of the UI: a failure is logged, and the run goes on."""
    try:
        await work
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost a picture
        logger.warning("the server could not be told: %s", reason_of(error))


class ProgressArtifact:
    """A progress bar on the server, made when it is first shown."""

    def __init__(self) -> None:
        self._id: UUID | None = None
        self._words = ""

    async def show(self, done: int, total: int, label: str) -> None:
        """Show how much is done, unless the bar shows that already."""
        if label == self._words:
            return
        share = 100 * done / total
        if self._id is None:
            self._id = await create_progress(share, key=PROGRESS, description=label)
        else:
            await update_progress(self._id, share, label)
        self._words = label


class RunArtifacts:
    """Plan, progress bar and preview on the server, renewed in the background while sampling goes on.

    Of one run, or of several that are drawn together; those have no plan, because what they share is only known
    while they are drawn. Outside of a flow run there is no server, and nothing is shown.
    """

    def __init__(self, batch: RunBatch) -> None:
        self._batch = batch
        self._bar = ProgressArtifact()
        self._preview: UUID | None = None
        self._bar_at = self._preview_at = time.monotonic()
        self._has_server = in_flow_run()
        self._renewal = asyncio.create_task(best_effort(self._begin()))

    def renew(self) -> None:
        """Show where the run is, in the background, unless that was done a moment ago or is being done."""
        if self._has_server and time.monotonic() - self._bar_at >= BAR_SECONDS and self._renewal.done():
            self._bar_at = time.monotonic()
            # Raises what `best_effort` does not catch: a signal to end, for instance.
            self._renewal.result()
            self._renewal = asyncio.create_task(best_effort(self._renew()))

    async def end(self, *, with_preview: bool) -> None:
        """Show where the run ended; a run that was too fast for a preview shows what it became, if that is wanted."""
        await self._renewal
        if self._has_server:
            updates = [self._show_progress()]
            if with_preview and self._preview is None and settings().preview_seconds > 0:
                updates.append(self._show_preview())
            await asyncio.gather(*map(best_effort, updates))

    async def _begin(self) -> None:
        if not self._has_server:
            return
        shown = [self._show_progress()]
        if len(self._batch.members) == 1:
            shown.append(self._show_plan(self._batch.members[0].run))
        await asyncio.gather(*map(best_effort, shown))

    async def _show_plan(self, run: RenderContext) -> None:
        await create_markdown(_plan(run), key="plan", description=f"Plan of {run.job_hash[:8]}")

    async def _show_progress(self) -> None:
        await self._bar.show(*self._batch.steps_done(), self._words)

    @property
    def _words(self) -> str:
        return progress_words(*self._batch.steps_done(), len(self._batch.members))

    async def _renew(self) -> None:
        await self._show_progress()
        pause = settings().preview_seconds
        if pause == 0 or time.monotonic() - self._preview_at < pause:
            return
        await self._show_preview()

    async def _show_preview(self) -> None:
        image = await asyncio.to_thread(lambda: as_data_uri(preview(self._batch.members)))
        if self._preview is None:
            self._preview = await create_image(image, key="preview", description=self._words)
        else:
            await update_image(self._preview, image, self._words)
        self._preview_at = time.monotonic()


def _plan(run: RenderContext) -> str:
    """Rows and forwards per step, as a table."""
    cost = run.cost
    rows = "\n".join(
        f"| {first} to {last} | {count.evaluations} | {float(count.canvases):.4g} | {count.forwards} |"
        for first, last, count in cost.runs()[:40]
    )
    work = f", the work of {float(cost.canvases):.4g} of the canvas," if cost.canvases < cost.evaluations else ""
    total = f"{cost.evaluations} network rows{work} in {cost.forwards} forwards.\n\n"
    header = "| steps | rows per step | canvases per step | forwards per step |\n| --- | --- | --- | --- |"
    return f"{total}{header}\n{rows}\n"


def preview(members: Sequence[RunProgress]) -> Image.Image:
    """The first picture of each run as it will be if the last step's direction is kept; of many, the first ones."""
    pictures, room = list[Image.Image](), PREVIEW_CELLS**2
    for member in members:
        latent = member.predicted_clean[:1]
        edge = max(latent.shape[2:])
        if edge > PREVIEW_CELLS:
            latent = interpolate(latent, scale_factor=PREVIEW_CELLS / edge, mode="area")
        room -= latent.shape[2] * latent.shape[3]
        if pictures and room < 0:
            break
        with member.run.autoencoder() as autoencoder:
            pictures.append(Image.fromarray(autoencoder.decode(latent)[0].numpy()))
    if len(pictures) == 1:
        return pictures[0]
    columns = math.isqrt(len(pictures) - 1) + 1
    size = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    return sheet(pictures, (columns, -(-len(pictures) // columns)), size)
