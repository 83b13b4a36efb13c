"""ControlNets and T2I-Adapters of jobs: compared with the models that they steer, and the pictures that they read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.models.control_file import ControlFile
from prefect_regional_diffusion.sampling_core.models.family import Checkpoint
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles, find_file, find_files
from prefect_regional_diffusion.sampling_core.planning.control_pictures import control_box, control_name
from prefect_regional_diffusion.sampling_core.tensors.types import RgbImage
from prefect_regional_diffusion.tasks.inputs.file_names import shown_path
from prefect_regional_diffusion.tasks.inputs.image_files import picture_in_box
from prefect_regional_diffusion.tasks.inputs.path_policy import control_place

Controls = dict[tuple[str, str], ControlFile]
"""By model and path."""


def open_controls(job: ResolvedJob, models: Mapping[str, Checkpoint]) -> Controls:
    """Compare the headers of a job's controls with the models that they steer. Raises BadInput or ModelError."""
    controls: Controls = {}
    for field, model, path in job.control_uses:
        if (model, path) not in controls:
            controls[model, path] = models[model].open_control(_files(field, path))
    return controls


def _files(field: str, path: str) -> ModelFiles:
    place, shown_name = control_place(field, path), shown_path(path)
    if not Path(place).is_dir():
        return find_file(field, shown_name, place)
    try:
        return find_files(shown_name, Path(place), lambda link: control_place(field, link), field)
    except (OSError, RecursionError) as error:
        raise ModelError(field, shown_name, f"cannot be read: {type(error).__name__}: {error}"[:120]) from error


def control_tensors(job: ResolvedJob, photos: Mapping[str, RgbImage], digests: Mapping[str, str]) -> dict[str, Tensor]:
    """The pictures that controls read, [H, W, 3] in canvas pixels, by `control_name`. `photos` are image files by path.

    Raises BadInput for a mask's colour that its map does not have.
    """
    return {
        control_name(picture, digests): picture_in_box(
            photos[picture.path], control_box(job, picture, photos), (job.height, job.width), picture.fit
        )
        for picture in job.control_pictures
    }
