"""What a person should know of a job's images before it is drawn."""

from __future__ import annotations

from collections.abc import Mapping

from sampling_core._types import Photo
from sampling_core.color_maps import NEAR, near_misses
from sampling_core.fitting import Fit, Size, same_shape
from sampling_core.job import RenderJob
from sampling_core.region_masks import mask_size
from sampling_core.shapes import ColorMap, Image

_DONE: dict[Fit, str] = {
    "crop": "it is cropped",
    "contain": "all of it is seen and {rest}",
    "stretch": "it is distorted",
}


def image_warnings(job: RenderJob, photos: Mapping[str, Photo]) -> list[str]:
    """Images of another shape than the canvas, and colours of which a map has many pixels that just miss them.

    `photos` holds the image files by path.
    """
    found: list[str] = []
    if job.start_image is not None:
        canvas = (job.height, job.width)
        told = _unlike(photos[job.start_image], canvas, "the canvas'", job.start_fit, "its edges fill the rest")
        found += [f"start_image: {told} (start_fit)"] if told else []
    shapes = [(mask.field, mask.shape) for mask in job.drawn_masks()]
    shapes += [(f"protect.{i}", shape) for i, shape in enumerate(job.protect)]
    for field, shape in shapes:
        whose = "a grid cell's" if field == "node.tile" else "the canvas'"
        match shape:
            case Image(image=path, fit=fit):
                told = _unlike(photos[path], mask_size(job, field), whose, fit, "the rest is outside")
                found += [f"{field}.image: {told} (fit)"] if told else []
            case ColorMap(color_map=path, fit=fit):
                told = _unlike(photos[path], mask_size(job, field), whose, fit, "the rest is outside")
                found += [f"{field}.color_map: {told} (fit)"] if told else []
                missed = near_misses(photos[path], shape.color, shape.tolerance)
                if missed:
                    found.append(
                        f"{field}.color: {missed} pixels are within {shape.tolerance + NEAR} of {list(shape.color)} "
                        f"and do not count as this colour (tolerance is {shape.tolerance})"
                    )
            case _:
                pass
    return found


def _unlike(photo: Photo, canvas: Size, whose: str, fit: Fit, rest: str) -> str:
    """What is done with an image of another shape; empty if it has the same."""
    height, width = photo.shape[:2]
    if same_shape((height, width), canvas):
        return ""
    done = _DONE[fit].format(rest=rest)
    return f"{width} x {height} pixels is not {whose} shape, {canvas[1]} x {canvas[0]}: {done}"
