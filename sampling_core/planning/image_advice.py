"""What a person should know of a job's images before it is drawn."""

from __future__ import annotations

from collections.abc import Mapping

from prefect_regional_diffusion.sampling_core.job.mask_shapes import ColorMap, Image
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.masks.color_maps import NEAR, Color, near_misses
from prefect_regional_diffusion.sampling_core.masks.image_fitting import Size, same_shape
from prefect_regional_diffusion.sampling_core.names import Fit
from prefect_regional_diffusion.sampling_core.planning.region_masks import mask_size
from prefect_regional_diffusion.sampling_core.tensors.types import RgbImage

_DONE: dict[Fit, str] = {
    "crop": "it is cropped",
    "contain": "all of it is seen and {rest}",
    "stretch": "it is distorted",
}


def image_warnings(job: RenderJob, photos: Mapping[str, RgbImage]) -> list[str]:
    """Images of another shape than the canvas, and colours of which a map has many pixels that just miss them.

    `photos` holds the image files by path.
    """
    found: list[str] = []
    counted: dict[tuple[str, Color, int], int] = {}
    sizes: dict[str, Size] = {path: (photo.shape[0], photo.shape[1]) for path, photo in photos.items()}
    if job.start_image is not None:
        canvas = (job.height, job.width)
        told = _unlike(sizes[job.start_image], canvas, "the canvas'", job.start_fit, "its edges fill the rest")
        found += [f"start_image: {told} (start_fit)"] if told else []
    shapes = [(mask.field, mask.shape) for mask in job.drawn_masks()]
    shapes += [(f"protect.{i}", shape) for i, shape in enumerate(job.protect)]
    for field, shape in shapes:
        match shape:
            case Image(image=path):
                found += _of_mask(job, f"{field}.image", shape.fit, path, sizes)
            case ColorMap(color_map=path):
                found += _of_mask(job, f"{field}.color_map", shape.fit, path, sizes)
                same = (path, shape.color, shape.tolerance)
                if same not in counted:
                    counted[same] = near_misses(photos[path], shape.color, shape.tolerance)
                missed = counted[same]
                if missed:
                    found.append(
                        f"{field}.color: {missed} pixels are within {shape.tolerance + NEAR} of {list(shape.color)} "
                        f"and do not count as this colour (tolerance is {shape.tolerance})"
                    )
            case _:
                pass
    return found


def _of_mask(job: RenderJob, field: str, fit: Fit, path: str, sizes: Mapping[str, Size]) -> list[str]:
    """What is done with a mask's file, and whether it lies elsewhere than the start image that it belongs to."""
    tile = field.startswith("node.tile")
    whose = "a grid cell's" if tile else "the canvas'"
    told = _unlike(sizes[path], mask_size(job, field.rpartition(".")[0]), whose, fit, "the rest is outside")
    if not told:
        return []
    found = [f"{field}: {told} (fit)"]
    belongs = job.start_image is not None and not tile and sizes[job.start_image] == sizes[path]
    if belongs and fit != job.start_fit:
        unlike = f"fit is {fit}, start_fit is {job.start_fit}"
        found.append(f"{field}: it has the start image's size, and does not lie on it: {unlike}")
    return found


def _unlike(image: Size, canvas: Size, whose: str, fit: Fit, rest: str) -> str:
    """What is done with an image of another shape; empty if it has the same."""
    if same_shape(image, canvas):
        return ""
    done = _DONE[fit].format(rest=rest)
    return f"{image[1]} x {image[0]} pixels is not {whose} shape, {canvas[1]} x {canvas[0]}: {done}"
