"""Regional diffusion sampling as a Prefect workflow.

    from prefect_regional_diffusion import Rectangle, Region, RenderJob, render

    left = Region(prompt="a red circle", mask=Rectangle(x=0, y=0, width=0.5, height=1))
    result = render(RenderJob(prompt="a blue background", regions=(left,)))
    result.images[0].save("picture.png")

`render` draws in this process, without a server. In a flow of your own, `render_task` does it as a task. What people
write in a script is here; everything else is in `sampling_core`, `tasks`, `flows` and `deployments`.
Nothing is imported before it is used: torch, diffusers and Prefect take seconds.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_regional_diffusion.flows.api import JobPlan, RenderResult, arender, plan, render
    from prefect_regional_diffusion.flows.render_task import render_task
    from prefect_regional_diffusion.sampling_core.errors import (
        BadInput,
        FileError,
        ModelError,
        RegionalError,
        ServerError,
        StoreError,
    )
    from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob
    from prefect_regional_diffusion.sampling_core.job.mask_shapes import ColorMap, Ellipse, Image, Polygon, Rectangle
    from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
    from prefect_regional_diffusion.sampling_core.job.shared_fields import Region
    from prefect_regional_diffusion.tasks.machine.blocks import ModelCatalog, RegionalStore

__all__ = [
    "BadInput",
    "ColorMap",
    "Ellipse",
    "FileError",
    "GridJob",
    "Image",
    "JobPlan",
    "ModelCatalog",
    "ModelError",
    "Polygon",
    "Rectangle",
    "Region",
    "RegionalError",
    "RegionalStore",
    "RenderJob",
    "RenderResult",
    "ServerError",
    "StoreError",
    "arender",
    "plan",
    "render",
    "render_task",
]

_MODULES = {
    "flows.api": ("JobPlan", "RenderResult", "arender", "plan", "render"),
    "flows.render_task": ("render_task",),
    "sampling_core.errors": ("BadInput", "FileError", "ModelError", "RegionalError", "ServerError", "StoreError"),
    "sampling_core.job.grid_job": ("GridJob",),
    "sampling_core.job.mask_shapes": ("ColorMap", "Ellipse", "Image", "Polygon", "Rectangle"),
    "sampling_core.job.render_job": ("RenderJob",),
    "sampling_core.job.shared_fields": ("Region",),
    "tasks.machine.blocks": ("ModelCatalog", "RegionalStore"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Read when torch is imported: threads that wait by spinning starve each other, and other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
