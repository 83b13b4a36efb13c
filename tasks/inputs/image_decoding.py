"""Bytes of an image file to upright 8-bit RGB, in a bounded amount of memory, which is known from the file's header."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from prefect_regional_diffusion.sampling_core.text.plain_text import plain
from prefect_regional_diffusion.tasks.machine.settings import settings

Pixels = NDArray[np.uint8]

_BYTES_PER_PIXEL = {"PNG": 8, "JPEG": 8, "GIF": 8, "BMP": 8, "TIFF": 10, "WEBP": 18}
"""Formats that are read, and the most memory that one pixel takes while it is unpacked, as measured in
`tests/test_images.py`. WebP's decoder keeps whole canvases beside the image; a TIFF may be one strip."""
_PROGRESSIVE = 5
"""What a progressive JPEG needs beside that: all of its coefficients."""
_MOST_SCANS = 100
"""Of a progressive JPEG, ten times what cameras write: each goes over the whole image, and may have 40 bytes."""
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
"""Begins a segment with a length, or ends a JPEG."""
_SCAN, _END = b"\xda", b"\xd9"
_TILE_SIDES = (322, 323)
"""TIFF tags: TileWidth, TileLength."""
_ROWS = 64
"""Rows that are converted at once."""
_ORIENTATION = 0x0112
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, 3),
    7: lambda pixels: np.rot90(pixels.transpose(1, 0, 2), 2),
    8: np.rot90,
}
"""By the Exif tag: how an image is turned that was taken with the camera held otherwise."""
_TO_8_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)


class UnsupportedImageError(Exception):
    """A whole image of a kind that is not read; the text says what it has."""


class TooLargeError(Exception):
    """An image that would unpack to too much; `allowed` says what is allowed."""

    def __init__(self, allowed: str) -> None:
        super().__init__(allowed)
        self.allowed = allowed


def unpacked(data: bytes, pixel_budget: int) -> Pixels:
    """The first picture in an image file as [height, width, 3], upright; what is transparent is black.

    `pixel_budget` is how many pixels the images of a job may still have. Raises TooLargeError and UnsupportedImageError
    before anything is unpacked, and whatever a decoder stumbles over.
    """
    pixels, orientation = _decode_stored(data, pixel_budget)
    # The decoded image is freed by now, so that there is memory for the turned pixels beside these.
    return np.ascontiguousarray(_UPRIGHT[orientation](pixels)) if orientation in _UPRIGHT else pixels


def _decode_stored(data: bytes, pixel_budget: int) -> tuple[Pixels, int]:
    """The picture as it is stored, and its orientation as an Exif tag has it."""
    with warnings.catch_warnings():
        # Pillow warns of what is checked here or does not matter: sizes, odd palettes, odd metadata.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=tuple(_BYTES_PER_PIXEL)) as image:
            _check_size(image, pixel_budget)
            if isinstance(image, JpegImageFile) and _scans(data) > _MOST_SCANS:
                raise TooLargeError(f"a JPEG of at most {_MOST_SCANS} scans")
            if image.mode == "F":
                raise UnsupportedImageError("has floating-point pixels, which are not read: save it with 8 or 16 bits")
            image.load()
            orientation = 1
            with contextlib.suppress(Exception):  # damaged metadata: the orientation is unknown
                orientation = int(image.getexif().get(_ORIENTATION, 1))
            pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
            # Converting the whole image would take the memory of another one, and often of several.
            for top in range(0, image.height, _ROWS):
                bottom = min(top + _ROWS, image.height)
                pixels[top:bottom] = _to_rgb(image.crop((0, top, image.width, bottom)))
    return pixels, orientation


def _scans(data: bytes) -> int:
    """How often a JPEG goes over its image."""
    offset, num_scans = 2, 0
    while (marker := _MARKER.search(data, offset)) is not None and marker[1] != _END:
        num_scans += marker[1] == _SCAN
        offset = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return num_scans


def reason(error: Exception) -> str:
    """One line about an error."""
    return plain(error, 160) or type(error).__name__


def _check_size(image: Image.Image, pixel_budget: int) -> None:
    limits = settings()
    # A TIFF is decoded by whole tiles, and one tile may be far larger than its image.
    tile = math.prod(int(image.tag_v2.get(side, 1)) for side in _TILE_SIDES) if isinstance(image, TiffImageFile) else 0
    pixels = max(image.width * image.height, tile)
    size = f"{image.width} x {image.height} pixels" + (f" in tiles of {tile}" if tile > 1 else "")
    if pixels > limits.max_mask_pixels:
        raise TooLargeError(f"an image of at most {limits.max_mask_pixels} pixels (REGIONAL_MAX_MASK_PIXELS; {size})")
    if pixels > pixel_budget:
        total = f"images of at most {limits.max_image_pixels} pixels together (REGIONAL_MAX_IMAGE_PIXELS"
        raise TooLargeError(f"{total}; {pixel_budget} are left; {size})")
    # A JPEG with further pictures behind it, as phones write them, has a name of its own in Pillow.
    kind = "JPEG" if isinstance(image, JpegImageFile) else image.format or ""
    bytes_per_pixel = _BYTES_PER_PIXEL[kind] + (_PROGRESSIVE if "progressive" in image.info else 0)
    if pixels * bytes_per_pixel > limits.max_image_bytes:
        allowed = f"an image that unpacks in at most {limits.max_image_bytes} bytes (REGIONAL_MAX_IMAGE_BYTES"
        raise TooLargeError(f"{allowed}; {size} of {image.format} may need {pixels * bytes_per_pixel})")


def _to_rgb(part: Image.Image) -> Pixels:
    """Rows of an image in 8-bit RGB: deeper greys are scaled, and what is transparent is black (outside)."""
    if part.mode.startswith("I"):
        return _TO_8_BITS[np.asarray(part).clip(0, 65535)][:, :, None].repeat(3, axis=2)
    if part.has_transparency_data:
        layer = part.convert("RGBA")
        part = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
    return np.asarray(part.convert("RGB"))
