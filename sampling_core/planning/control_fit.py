"""A job's ControlNets and T2I-Adapters as their files have them, and at which noise levels they act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.resolved import ParticipantSettings, ResolvedJob, ResolvedRegion
from prefect_regional_diffusion.sampling_core.job.resolved_controls import ControlPicture, ResolvedControl
from prefect_regional_diffusion.sampling_core.job.resolved_window import ResolvedWindow
from prefect_regional_diffusion.sampling_core.models.control_file import ControlFile
from prefect_regional_diffusion.sampling_core.models.model_key import ControlKey
from prefect_regional_diffusion.sampling_core.schedules.level_range import level_range


def fit_controls(
    job: ResolvedJob, files: Mapping[tuple[str, str], ControlFile], pixels: Mapping[ControlPicture, str]
) -> ResolvedJob:
    """The job with each participant's controls known by their content, in one order: equal sums are equal rows.

    `files` are by model and path, `pixels` the SHA-256 of each picture as it is laid on the canvas. Fitting again
    changes nothing. Raises BadInput for a canvas that a network has no maps for.
    """
    for participant in job.participants:
        for control in participant.controls:
            multiple = files[participant.model, control.file].pixel_multiple
            for name, edge in (("width", job.width), ("height", job.height)):
                if edge % multiple:
                    raise BadInput(name, edge, f"a multiple of {multiple}, for {control.field}")

    def fit_participant(settings: ParticipantSettings) -> ParticipantSettings:
        controls = [
            _identify(control, files[settings.model, control.file], pixels[control.picture])
            for control in settings.controls
        ]
        order = sorted(
            controls,
            key=lambda control: (
                control.network_sha256,
                control.pixels_sha256,
                control.start,
                control.end,
                control.strength,
            ),
        )
        return settings._replace(controls=tuple(order))

    regions = tuple(
        region._replace(settings=fit_participant(region.settings), window=_fit_window(job, region, files))
        for region in job.regions
    )
    return replace(job, base=fit_participant(job.base), regions=regions)


def _fit_window(
    job: ResolvedJob, region: ResolvedRegion, files: Mapping[tuple[str, str], ControlFile]
) -> ResolvedWindow | None:
    """The region's window, if there is one. The maps of a T2I-Adapter are cut with it, and must end with its canvas."""
    window, model = region.window, region.settings.model
    if window is None or window.least_pixels is None:
        return window
    for control in region.settings.controls:
        for name, edge in (("width", job.width), ("height", job.height)):
            if files[model, control.file].kind == "T2I-Adapter" and edge % window.multiple:
                if window.auto:
                    return window._replace(least_pixels=None)
                raise BadInput(name, edge, f"a multiple of {window.multiple}, for {control.field} in a window")
    return window


def _identify(control: ResolvedControl, file: ControlFile, pixels: str) -> ResolvedControl:
    return control._replace(
        network_sha256=file.fingerprint(), pixels_sha256=pixels, every_step=file.kind == "ControlNet"
    )


def control_keys(controls: Sequence[ResolvedControl], sigmas: Sequence[float]) -> tuple[ControlKey, ...]:
    """The controls of a participant by content; `sigmas` are those of the job's own schedule, noisiest first.

    Raises BadInput for one between whose start and end there is no step.
    """
    return tuple(
        ControlKey(
            control.network_sha256,
            control.pixels_sha256,
            control.strength,
            control.every_step,
            level_range(sigmas, control.start, control.end, control.field),
        )
        for control in controls
    )


def described(job: ResolvedJob, files: Mapping[tuple[str, str], ControlFile]) -> list[str]:
    """One line for each control of a job: what it is, what it reads, and how it acts."""
    lines: dict[str, str] = {}
    for participant in job.participants:
        for control in participant.controls:
            file = files[participant.model, control.file]
            description = f"{file.files.model} is a {file.kind}, strength {control.strength:g}"
            when = "" if (control.start, control.end) == (0, 1) else f", from {control.start:g} to {control.end:g}"
            costs = "works in each of these steps" if control.every_step else "computed once, before the first step"
            lines[control.field] = f"{control.field}: {description}{when}; {costs}"
    return [lines[field] for field in sorted(lines)]
