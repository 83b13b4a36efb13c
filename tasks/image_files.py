"""Images that a person hands in: start images, and those that masks are read from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from sampling_core._types import Photo
from sampling_core.errors import BadInput
from sampling_core.fitting import Fit, Size, placing
from sampling_core.job import RenderJob
from sampling_core.plain_text import plain
from tasks.credentials import storage_options
from tasks.file_kinds import unreadable_kind
from tasks.file_names import shown_path
from tasks.settings import settings
from tasks.trust import image_place, is_url

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_TILE_SIDES = (322, 323)
"""TIFF tags: TileWidth, TileLength."""
_NO_FILES = (
    (stat.S_ISDIR, "this is a folder"),
    (stat.S_ISFIFO, "this is a pipe, and it would be read for ever"),
    (stat.S_ISCHR, "this is a device, and it would be read for ever"),
    (stat.S_ISBLK, "this is a device, and it would be read for ever"),
    (stat.S_ISSOCK, "this is a socket"),
)


@dataclass(frozen=True)
class ImageFiles:
    """The decoded images of a job, and the SHA-256 of each file; both by path."""

    photos: Mapping[str, Photo]
    digests: Mapping[str, str]


class _TooLargeError(Exception):
    """An image has too many pixels; the message says how many."""


def read_image_files(job: RenderJob) -> ImageFiles:
    """Read every image that a job names. Raises BadInput for one that is missing, too large or no image."""
    left = settings().max_image_pixels
    photos: dict[str, Photo] = {}
    digests: dict[str, str] = {}
    for field, name in job.image_files().items():
        if name not in photos:
            data = _read_limited(field, name)
            photos[name] = _decode(field, name, data, left)
            left -= math.prod(photos[name].shape[:2])
            digests[name] = hashlib.sha256(data).hexdigest()
    return ImageFiles(photos, digests)


def resized(photo: Photo, size: Size, fit: Fit = "crop") -> Photo:
    """The photo at a size (height, width; pixels); one that has it stays as it is, to the last bit.

    With `contain` the photo's outermost pixels are repeated beyond it.
    """
    height, width = photo.shape[:2]
    source, target = placing((height, width), size, fit)
    part = photo.numpy()[source.slices]
    if source.size != target.size:
        image = Image.fromarray(part).resize((target.width, target.height), Image.Resampling.LANCZOS)
        part = np.array(image)
    above, before = target.top, target.left
    below, behind = size[0] - above - target.height, size[1] - before - target.width
    return torch.from_numpy(np.pad(part, ((above, below), (before, behind), (0, 0)), mode="edge"))


def _read_limited(field: str, name: str) -> bytes:
    """The file's bytes. Raises BadInput for what is no file, and for a file that is empty or too large."""
    limit = settings().max_mask_bytes
    place = image_place(field, name)
    data = b""
    try:
        system, path = url_to_fs(place, **storage_options(place))
        # Before it is opened: a pipe without a writer blocks there.
        wrong = _object_trouble(system, path) if is_url(place) else _file_trouble(place)
        if not wrong:
            with system.open(path, "rb") as file:
                data = file.read(limit + 1)
            wrong = "" if data else "this file is empty"
    except Exception as error:  # an object store has its own ways to fail
        raise BadInput(field, shown_path(name), f"a readable image file ({_reason(error)})") from error
    if wrong:
        raise BadInput(field, shown_path(name), f"a readable image file ({wrong})")
    if len(data) > limit:
        raise BadInput(field, shown_path(name), f"an image file of at most {limit} bytes (REGIONAL_MAX_MASK_BYTES)")
    return data


def _object_trouble(system: AbstractFileSystem, path: str) -> str:
    """Why an object of a store is none that can be read; else empty."""
    if system.isfile(path):
        return ""
    return "this is a folder" if system.isdir(path) else "there is no such object"


def _file_trouble(place: str) -> str:
    """Why a path is no file that can be read; else empty."""
    try:
        mode = Path(place).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    return next((says for is_that, says in _NO_FILES if is_that(mode)), "")


def _decode(field: str, name: str, data: bytes, left: int) -> Photo:
    """The image, upright. `left` is how many pixels the job's images may still have."""
    most = settings().max_mask_pixels
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is checked here or does not matter: sizes, odd palettes, odd metadata.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_pixels(image, min(most, left))
                return torch.from_numpy(np.array(_flat(image)))
    except _TooLargeError as error:
        allowed = f"an image of at most {most} pixels (REGIONAL_MAX_MASK_PIXELS; {error})"
        if left < most:
            total = settings().max_image_pixels
            allowed = f"images of at most {total} pixels together (REGIONAL_MAX_IMAGE_PIXELS; {left} are left; {error})"
        raise BadInput(field, shown_path(name), allowed) from error
    except Exception as error:  # decoders fail in many ways on damaged files
        kind = unreadable_kind(data) or _reason(error)
        raise BadInput(field, shown_path(name), f"a readable image file ({kind})") from error


def _check_pixels(image: Image.Image, most: int) -> None:
    # A TIFF is decoded by whole tiles, and one tile may be far larger than its image.
    tile = math.prod(int(image.tag_v2.get(side, 1)) for side in _TILE_SIDES) if isinstance(image, TiffImageFile) else 0
    if max(image.width * image.height, tile) > most:
        raise _TooLargeError(f"{image.width} x {image.height} is more than {most} pixels, or its tiles are")


def _flat(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB: deeper greys are scaled, and what is transparent is black (outside)."""
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata: then nobody knows how the camera was held
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        deep = np.asarray(image, dtype=np.int64).clip(0, 65535)
        return Image.fromarray((deep / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    return plain(error, 160) or type(error).__name__
