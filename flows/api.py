"""Rendering from Python: a job in, pictures out, in this process, without a server, by the body of flow `render`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import fsspec
from PIL import Image

from prefect_regional_diffusion.flows.drawing.draw_job import draw_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.tasks.inputs.path_policy import trust_caller
from prefect_regional_diffusion.tasks.machine.step_listener import listener
from prefect_regional_diffusion.tasks.runtime.preparations import preparations, prepared_once
from prefect_regional_diffusion.tasks.storage.credentials import storage_options

StepListener = Callable[[int, int], None]
"""Is called after each step with the number of finished steps and of all steps."""


class RenderResult(NamedTuple):
    """The pictures of a job, and how they were made.

    `record` is what flow `render` returns: the job, hashes of its files and weights, what was computed and restored.
    Its `images` are the places of the PNG files, where the caller has named a folder for them.
    """

    images: tuple[Image.Image, ...]
    record: dict[str, Any]


class JobPlan(NamedTuple):
    """What drawing a job costs: network rows (`evaluations`), the same in evaluations of the whole canvas (a row that
    shows a window counts as its share), network calls (`forwards`), rows that ControlNets answer beside these, bytes of
    memory, roughly.

    `saved` and `warnings` are sentences for people.
    """

    steps: int
    evaluations: int
    canvas_evaluations: float
    forwards: int
    control_rows: int
    memory_bytes: int
    saved: tuple[str, ...]
    warnings: tuple[str, ...]


def plan(job: RenderJob) -> JobPlan:
    """Check a job and count what it costs, without loading weights. Raises BadInput, FileError or ModelError."""
    with trust_caller(), prepared_once():
        prepared = preparations().look_up(job)
        cost = prepared.cost
        return JobPlan(
            prepared.run.steps,
            cost.evaluations,
            float(cost.canvases),
            cost.forwards,
            cost.control_rows,
            prepared.memory_bytes(),
            tuple(prepared.savings()),
            tuple(prepared.warnings()),
        )


async def arender(
    job: RenderJob,
    *,
    store: str | Path | None = None,
    out: str | Path | None = None,
    on_step: StepListener | None = None,
    name: str = "render",
) -> RenderResult:
    """Draw the pictures of a job in this process.

    Args:
        job: What to draw. The caller may name images, models and places anywhere: check what others have written.
        store: Folder or fsspec URL in which latents are kept; the same job with the same store is resumed from there.
            None: nothing is kept.
        out: Folder or fsspec URL for the PNG files and their records. None: no files.
        on_step: Is called after each step.
        name: Beginning of the names of the files.

    Raises BadInput, FileError, ModelError or StoreError, each with one line that says what is wrong with what.
    """
    with ExitStack() as stack:
        stack.enter_context(trust_caller())
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="regional-")))
        if on_step is not None:
            stack.callback(listener.reset, listener.set(on_step))
        record = await draw_job(job, None, str(store or scratch / "store"), str(out or scratch / "out"), name)
        images = pictures_in(record)
        if out is None:
            record["images"] = []
        if store is None:
            record["store"] = None
        return RenderResult(images, record)


def pictures_in(record: dict[str, Any]) -> tuple[Image.Image, ...]:
    """The pictures whose places a record names."""
    return tuple(map(_read, record["images"]))


def _read(place: str) -> Image.Image:
    open_file: Any = fsspec.open(place, "rb", **storage_options(place))
    with open_file as file, Image.open(file) as image:
        return image.copy()


def render(
    job: RenderJob,
    *,
    store: str | Path | None = None,
    out: str | Path | None = None,
    on_step: StepListener | None = None,
    name: str = "render",
) -> RenderResult:
    """As `arender`, for code without an event loop. Raises RuntimeError where there is one: await `arender` there."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(arender(job, store=store, out=out, on_step=on_step, name=name))
    raise RuntimeError("an event loop is running here (as in a notebook): use `await arender(job)`")
