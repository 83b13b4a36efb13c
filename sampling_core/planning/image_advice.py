"""What a person should know of a job's images before it is drawn."""

from __future__ import annotations

from collections.abc import Mapping

from prefect_regional_diffusion.sampling_core.job.mask_shapes import ColorMap
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.job.resolved_masks import MaskFile, ResolvedMask
from prefect_regional_diffusion.sampling_core.masks.color_maps import NEAR, Color, near_misses
from prefect_regional_diffusion.sampling_core.masks.image_fitting import same_shape
from prefect_regional_diffusion.sampling_core.names import Fit, Size
from prefect_regional_diffusion.sampling_core.tensors.types import RgbImage

_FIT_EFFECTS: dict[Fit, str] = {
    "crop": "it is cropped",
    "contain": "all of it is seen and {rest}",
    "stretch": "it is distorted",
}


def image_warnings(job: ResolvedJob, photos: Mapping[str, RgbImage]) -> list[str]:
    """Images of another shape than the canvas, and colours of which a map has many pixels that just miss them.

    `photos` holds the image files by path.
    """
    warnings: list[str] = []
    near_miss_counts: dict[tuple[str, Color, int], int] = {}
    sizes: dict[str, Size] = {path: (photo.shape[0], photo.shape[1]) for path, photo in photos.items()}
    if job.init_image is not None:
        canvas = (job.height, job.width)
        change = _change_of_shape(sizes[job.init_image], canvas, "the canvas'", job.init_fit, "its edges fill the rest")
        warnings += [f"init_image: {change} (init_fit)"] if change else []
    for control in job.controls:
        if control.picture.place is None:
            fit, canvas = control.picture.fit, (job.height, job.width)
            change = _change_of_shape(sizes[control.picture.path], canvas, "the canvas'", fit, "the rest is black")
            warnings += [f"{control.field}.image: {change} (fit)"] if change else []
    for mask in (*job.masks, *job.protect):
        if mask.file is not None:
            warnings += _mask_warnings(job, mask, mask.file, sizes)
        if isinstance(mask.shape, ColorMap):
            path, color, tolerance = mask.shape.color_map, mask.shape.color, mask.shape.tolerance
            if (path, color, tolerance) not in near_miss_counts:
                near_miss_counts[path, color, tolerance] = near_misses(photos[path], color, tolerance)
            num_missed = near_miss_counts[path, color, tolerance]
            if num_missed:
                warnings.append(
                    f"{mask.field}.color: {num_missed} pixels are within {tolerance + NEAR} of {list(color)} "
                    f"and do not count as this colour (tolerance is {tolerance})"
                )
    return warnings


def _mask_warnings(job: ResolvedJob, mask: ResolvedMask, file: MaskFile, sizes: Mapping[str, Size]) -> list[str]:
    """What is done with a mask's file, and whether it lies elsewhere than the init image that it belongs to."""
    tile = mask.field == "node.tile"
    whose = "a grid cell's" if tile else "the canvas'"
    change = _change_of_shape(sizes[file.path], mask.size, whose, file.fit, "the rest is outside")
    if not change:
        return []
    warnings = [f"{file.field}: {change} (fit)"]
    belongs = job.init_image is not None and not tile and sizes[job.init_image] == sizes[file.path]
    if belongs and file.fit != job.init_fit:
        fits = f"fit is {file.fit}, init_fit is {job.init_fit}"
        warnings.append(f"{file.field}: it has the init image's size, and does not lie on it: {fits}")
    return warnings


def _change_of_shape(image: Size, canvas: Size, whose: str, fit: Fit, rest: str) -> str:
    """What is done with an image of another shape; empty if it has the same."""
    if same_shape(image, canvas):
        return ""
    effect = _FIT_EFFECTS[fit].format(rest=rest)
    return f"{image[1]} x {image[0]} pixels is not {whose} shape, {canvas[1]} x {canvas[0]}: {effect}"
