"""The window of a region with nothing left to look up."""

from __future__ import annotations

from typing import Any, NamedTuple

from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields, Region
from prefect_regional_diffusion.sampling_core.job.window import CropWindow


class ResolvedWindow(NamedTuple):
    """The margin of a region's window in pixels, and the first steps of the run that do not use it.

    With `auto` it is used where it saves enough. `least_pixels` is its smallest edge, None if the region's model takes
    whole canvases only; its edges are at multiples of `multiple`, in pixels. With `one_place`, its rows share forwards
    with those of the same window alone. These three follow from the model and the controls: see `fit_to_models` and
    `fit_controls`.
    """

    margin: int
    full_steps: int
    auto: bool = False
    least_pixels: int | None = 0
    multiple: int = 1
    one_place: bool = False

    @property
    def written(self) -> dict[str, Any]:
        """As it stands in a job."""
        return {"margin": self.margin, "full_steps": self.full_steps}


AUTO = ResolvedWindow(margin=0, full_steps=0, auto=True)
"""On the embedded model, these values drew most regions as prompted; no other model was measured."""


def resolved_window(job: JobFields, region: Region) -> ResolvedWindow | None:
    """A region's own window, or its job's; None: the canvas."""
    match job.window if region.window is None else region.window:
        case CropWindow() as window:
            return ResolvedWindow(window.margin, window.full_steps)
        case "auto":
            return AUTO
        case _:
            return None
