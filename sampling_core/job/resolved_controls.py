"""The ControlNets and T2I-Adapters of a job and of its regions with nothing left to look up."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.job.adapters import Control
from prefect_regional_diffusion.sampling_core.job.mask_shapes import MaskShape
from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields, Region
from prefect_regional_diffusion.sampling_core.names import Fit


class RegionPlace(NamedTuple):
    """The mask of a region, around which a picture lies: its field, its shape, and in pixels how far it grows."""

    field: str
    shape: MaskShape
    grow: int


class ControlPicture(NamedTuple):
    """A picture that a control reads: the file, and how and where it is laid; on the canvas if `place` is None."""

    path: str
    fit: Fit
    place: RegionPlace | None


class ResolvedControl(NamedTuple):
    """A ControlNet or T2I-Adapter: the field of the job that it is, its file, its picture, its strength and its steps.

    `network_sha256` is of the file, `pixels_sha256` of the picture as it is laid, and `every_step` says whether it
    works in every step; they are empty and false as long as nobody has looked at the files (`fit_controls`).
    """

    field: str
    file: str
    picture: ControlPicture
    strength: float
    start: float
    end: float
    network_sha256: str = ""
    pixels_sha256: str = ""
    every_step: bool = False


class ControlUse(NamedTuple):
    """A control's file and the model that it steers, with the field that names the file."""

    field: str
    model: str
    file: str


def resolved_controls(job: JobFields, region: Region | None, index: int) -> tuple[ResolvedControl, ...]:
    """The controls of a region, its own or its job's, or of the base (None). One without strength is none."""
    region_controls = None if region is None else region.controls
    controls, prefix = (
        (job.controls, "controls") if region_controls is None else (region_controls, f"regions.{index}.controls")
    )
    return tuple(
        ResolvedControl(
            f"{prefix}.{i}",
            control.file,
            ControlPicture(control.image, control.fit, _place(control, region, index)),
            control.strength,
            control.start,
            control.end,
        )
        for i, control in enumerate(controls)
        if control.strength
    )


def _place(control: Control, region: Region | None, index: int) -> RegionPlace | None:
    if region is None or control.place == "canvas":
        return None
    return RegionPlace(f"regions.{index}.mask", region.mask, region.grow)
