"""What a person sees of a run that goes on: its plan, how far it is, and a preview of the picture."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from PIL import Image
from prefect.artifacts import (
    acreate_image_artifact,
    acreate_markdown_artifact,
    acreate_progress_artifact,
    aupdate_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from torch.nn.functional import interpolate

from sampling_core.plan import cost
from tasks.images import as_data_uri
from tasks.run import Run
from tasks.sampling import Progress
from tasks.settings import settings

BAR_SECONDS = 1.0
PREVIEW_CELLS = 64
"""Longest edge of a preview, in latent cells: decoding the whole of a large canvas would take as long as a step."""


async def tell_plan(run: Run) -> None:
    """The plan as a table: rows and forwards per step."""
    planned = cost(run.composition, settings().max_rows)
    rows = "\n".join(
        f"| {first} to {last} | {count.evaluations} | {count.forwards} |" for first, last, count in planned.runs()[:40]
    )
    table = f"| steps | rows per step | forwards per step |\n| --- | --- | --- |\n{rows}\n"
    total = f"{planned.evaluations} network rows in {planned.forwards} forwards.\n\n"
    await acreate_markdown_artifact(total + table, key="plan", description=f"Plan of {run.job_hash[:8]}")


class Shown:
    """A progress bar and a preview on the server, renewed while sampling goes on and never in its way."""

    def __init__(self, progress: Progress, bar: UUID) -> None:
        self._progress, self._bar, self._preview = progress, bar, None
        self._bar_at = self._preview_at = time.monotonic()
        self._renewal: asyncio.Task[None] | None = None

    @classmethod
    async def begin(cls, progress: Progress) -> Shown:
        """Show where the run begins."""
        return cls(progress, await acreate_progress_artifact(_percent(progress), "progress", _words(progress)))

    def renew(self) -> None:
        """Show where the run is, in the background, unless that was done a moment ago or is being done."""
        if time.monotonic() - self._bar_at >= BAR_SECONDS and (self._renewal is None or self._renewal.done()):
            self._bar_at = time.monotonic()
            self._renewal = asyncio.create_task(self._renew())

    async def end(self) -> None:
        """Show where the run ended."""
        if self._renewal is not None:
            await self._renewal
        await aupdate_progress_artifact(self._bar, _percent(self._progress), _words(self._progress))

    async def _renew(self) -> None:
        await aupdate_progress_artifact(self._bar, _percent(self._progress), _words(self._progress))
        pause = settings().preview_seconds
        if pause == 0 or time.monotonic() - self._preview_at < pause:
            return
        image = await asyncio.to_thread(_preview, self._progress)
        if self._preview is None:
            self._preview = await acreate_image_artifact(image, key="preview", description=_words(self._progress))
        else:
            update = ArtifactUpdate(data=image, description=_words(self._progress))
            async with get_client() as client:
                await client.update_artifact(self._preview, update)
        self._preview_at = time.monotonic()


def _percent(progress: Progress) -> float:
    return 100 * progress.done / progress.run.composition.steps


def _words(progress: Progress) -> str:
    return f"Step {progress.done} of {progress.run.composition.steps}"


def _preview(progress: Progress) -> str:
    """The first picture as it will be if the last step's direction is kept, as a data URI."""
    run = progress.run
    latent = progress.expected[:1]
    edge = max(latent.shape[2:])
    if edge > PREVIEW_CELLS:
        latent = interpolate(latent, scale_factor=PREVIEW_CELLS / edge, mode="area")
    return as_data_uri(Image.fromarray(run.model(run.job.model).decode(latent)[0].numpy()))
