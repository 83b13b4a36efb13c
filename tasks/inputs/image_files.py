"""Images that a job names: init images, those that masks are read from, and those that controls read."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from fsspec.core import url_to_fs
from numpy.typing import NDArray
from PIL import Image

from prefect_regional_diffusion.sampling_core.errors import BadInput, FileError
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.masks.image_fitting import Box, placing
from prefect_regional_diffusion.sampling_core.names import Fit, Size
from prefect_regional_diffusion.sampling_core.tensors.types import RgbImage
from prefect_regional_diffusion.tasks.inputs.file_kinds import unreadable_kind
from prefect_regional_diffusion.tasks.inputs.file_names import shown_path
from prefect_regional_diffusion.tasks.inputs.image_decoding import (
    TooLargeError,
    UnsupportedImageError,
    reason,
    unpacked,
)
from prefect_regional_diffusion.tasks.inputs.path_policy import image_place, is_url
from prefect_regional_diffusion.tasks.machine.regular_files import NoRegularFileError, open_regular
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.storage.credentials import storage_options

_MOST_OBLONG = 64
"""Of a photo whose middle is cut out: its long edge by its short one."""


@dataclass(frozen=True)
class ImageFiles:
    """The decoded images of a job, and the SHA-256 of each file; both by path."""

    photos: Mapping[str, RgbImage]
    digests: Mapping[str, str]


def read_image_files(job: ResolvedJob) -> ImageFiles:
    """Read every image that a job names. Raises FileError, or BadInput for one that is too large."""
    pixel_budget = settings().max_image_pixels
    photos: dict[str, RgbImage] = {}
    digests: dict[str, str] = {}
    for field, name in job.image_files.items():
        if name not in photos:
            data = _read_limited(field, name)
            photos[name] = _decode(field, name, data, pixel_budget)
            pixel_budget -= math.prod(photos[name].shape[:2])
            digests[name] = hashlib.sha256(data).hexdigest()
    return ImageFiles(photos, digests)


def resized(photo: RgbImage, size: Size, fit: Fit = "crop") -> RgbImage:
    """The photo at a size (height, width; pixels); one that has it stays as it is, to the last bit.

    With `contain` the photo's outermost pixels are repeated beyond it.
    """
    part, target = _fit_photo(photo, size, fit)
    above, before = target.top, target.left
    below, behind = size[0] - above - target.height, size[1] - before - target.width
    return torch.from_numpy(np.pad(part, ((above, below), (before, behind), (0, 0)), mode="edge"))


def picture_in_box(photo: RgbImage, box: Box, size: Size, fit: Fit) -> RgbImage:
    """A black picture of a size (height, width; pixels) with the photo in a part of it, resized to fit there."""
    part, target = _fit_photo(photo, box.size, fit)
    canvas = torch.zeros(*size, 3, dtype=torch.uint8)
    target = target._replace(top=box.top + target.top, left=box.left + target.left)
    canvas[target.slices] = torch.from_numpy(part)
    return canvas


def _fit_photo(photo: RgbImage, size: Size, fit: Fit) -> tuple[NDArray[np.uint8], Box]:
    """The visible part of a photo [h, w, 3], resized, and its box in a picture of this size."""
    height, width = photo.shape[:2]
    source, target = placing((height, width), size, fit)
    part: NDArray[np.uint8] = photo.numpy()[source.slices]
    if source.size != target.size:
        image = Image.fromarray(part).resize((target.width, target.height), Image.Resampling.LANCZOS)
        part = np.array(image)
    return part, target


def middle_square(photo: RgbImage, size: int) -> RgbImage:
    """The middle of a photo as a square of so many pixels, as CLIP's image processor cuts it.

    All of the photo is resized first, but for what is far outside the square: a strip of a pixel would become huge.
    """
    most = _MOST_OBLONG * min(photo.shape[:2])
    rows, columns = (slice((edge - min(edge, most)) // 2, (edge + min(edge, most)) // 2) for edge in photo.shape[:2])
    photo = photo[rows, columns]
    height, width = photo.shape[:2]
    short, long = sorted((height, width))
    other = int(size * long / short)
    height, width = (size, other) if height < width else (other, size)
    image = Image.fromarray(photo.numpy()).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - size) // 2, (width - size) // 2
    return torch.from_numpy(np.array(image.crop((left, top, left + size, top + size))))


def _read_limited(field: str, name: str) -> bytes:
    """The file's bytes. Raises FileError for what is missing, empty or no file, BadInput for one that is too large."""
    limit = settings().max_mask_bytes
    place = image_place(field, name)
    try:
        data = _object(place, limit + 1) if is_url(place) else _file(place, limit + 1)
    except NoRegularFileError as error:
        raise FileError(field, shown_path(name), f"is {error.kind}, and no image file") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        where = "" if place == shown_path(name) else f" (looked for at {place})"
        raise FileError(field, shown_path(name), f"does not exist{where}") from error
    except Exception as error:  # an object store has its own ways to fail
        raise FileError(field, shown_path(name), f"cannot be read: {reason(error)}") from error
    if not data:
        raise FileError(field, shown_path(name), "is empty")
    if len(data) > limit:
        raise BadInput(field, shown_path(name), f"an image file of at most {limit} bytes (REGIONAL_MAX_MASK_BYTES)")
    return data


def _file(place: str, most: int) -> bytes:
    with os.fdopen(open_regular(place), "rb") as file:
        return file.read(most)


def _object(place: str, most: int) -> bytes:
    system, path = url_to_fs(place, **storage_options(place))
    if not system.isfile(path):
        raise NoRegularFileError("a folder") if system.isdir(path) else FileNotFoundError(path)
    with system.open(path, "rb") as file:
        return bytes(file.read(most))


def _decode(field: str, name: str, data: bytes, pixel_budget: int) -> RgbImage:
    """The image, upright. `pixel_budget` is how many pixels the job's images may still have."""
    try:
        return torch.from_numpy(unpacked(data, pixel_budget))
    except TooLargeError as error:
        raise BadInput(field, shown_path(name), error.allowed) from error
    except UnsupportedImageError as error:
        raise FileError(field, shown_path(name), str(error)) from error
    except Exception as error:  # decoders fail in many ways on damaged files
        problem = unreadable_kind(data) or f"is no image file that can be read: {reason(error)}"
        raise FileError(field, shown_path(name), problem) from error
