"""Flow `recurring`: what a schedule draws: one job, with a seed and a base prompt that may change by date or by run."""

# No `from __future__ import annotations`: see flows/render.py.
import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from prefect import flow
from prefect.runtime import flow_run
from pydantic import AfterValidator, Field

from prefect_regional_diffusion.flows.common.results import NO_RESULTS
from prefect_regional_diffusion.flows.common.run_names import MOST_NAME
from prefect_regional_diffusion.flows.render import CheckpointSteps, render
from prefect_regional_diffusion.sampling_core.job.fields import Text, validation_error
from prefect_regional_diffusion.sampling_core.job.forms import JointJob
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.text.plain_text import one_line

Change = Literal["fixed", "by date", "by run"]


def _existing_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise validation_error("timezone", name, "a zone of the IANA database, such as Europe/Berlin") from None
    return name


Zone = Annotated[str, AfterValidator(_existing_zone)]
Prompts = Annotated[tuple[Text, ...], Field(max_length=1000)]


def _run_name() -> str:
    parameters: dict[str, Any] = flow_run.parameters or {}
    return f"{one_line(parameters.get('name', 'recurring'), MOST_NAME)} {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


@flow(name="recurring", flow_run_name=_run_name, persist_result=False, result_storage=NO_RESULTS)
async def recurring(
    job: JointJob,
    seed: Change = "by date",
    prompts: Prompts = (),
    prompt: Change = "by date",
    timezone: Zone = "UTC",
    checkpoint_steps: CheckpointSteps = None,
    store: str | None = None,
    out: str | None = None,
    name: Annotated[str, Field(max_length=60)] = "recurring",
) -> dict[str, Any]:
    """Draw the picture of the day, or of the hour. Started again, a run draws the picture that it was due to draw.

    Args:
        job: What to draw.
        seed: Fixed: the job's seed. By date: another one every day. By run: another one every time.
        prompts: Base prompts that replace the job's. Empty: the job's.
        prompt: Fixed: the first of them. By date: the next one every day. By run: one is drawn by lot every time.
        timezone: Where the date is taken from; the schedule's time zone, usually.
        checkpoint_steps: The state is saved after so many steps. Empty: about every second.
        store: Where latents are kept: a folder or an fsspec URL. Empty: where the worker keeps them.
        out: Folder for the finished picture. Empty: where the worker puts them.
        name: Start of the picture's file name; the date follows.

    Returns:
        The record of the picture, with the job that was drawn.
    """
    # The time at which the run was due, not the time at which it started: a retry may be late.
    due = flow_run.scheduled_start_time.astimezone(ZoneInfo(timezone))
    due_job = job_at(due, job, seed, prompts, prompt)
    return await render(due_job, checkpoint_steps, store, out, f"{name}-{due:%Y-%m-%d}")


def job_at(due: datetime, job: RenderJob, seed: Change, prompts: Sequence[str], prompt: Change) -> RenderJob:
    """The job that is drawn by a run that was due at a moment; its date counts in the moment's own time zone.

    It depends on nothing else, so the same run draws the same picture however often it is started.
    """
    moments = {"fixed": "", "by date": due.date().isoformat(), "by run": f"{due.timestamp():.0f}"}
    changes: dict[str, Any] = {}
    if seed != "fixed":
        changes["seed"] = _number(job.seed, "seed", moments[seed])
    if prompts:
        positions = {"fixed": 0, "by date": due.toordinal(), "by run": _number(job.seed, "prompt", moments["by run"])}
        changes["prompt"] = prompts[positions[prompt] % len(prompts)]
    return job.model_copy(update=changes)


def _number(*key: object) -> int:
    """A whole number below 2**53, which a browser shows exactly; each key has its own."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11
