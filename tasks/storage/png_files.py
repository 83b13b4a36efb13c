"""PNG files that were written here, when they come back: looked at before anything is unpacked."""

from __future__ import annotations

import io
import struct

from PIL import Image

from prefect_regional_diffusion.tasks.machine.logs import plain_logger

logger = plain_logger(__name__)

_BEGINNING = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_RGB = (8, 2, 0, 0, 0)
"""Bits, colours, compression, filter, interlacing."""


def png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that an 8-bit RGB file names, in pixels; None if it is no such file."""
    if not data.startswith(_BEGINNING) or len(data) < 33:
        return None
    width, height, *kind = struct.unpack(">II5B", data[16:29])
    return (width, height) if tuple(kind) == _RGB else None


def unpacked(data: bytes, size: tuple[int, int]) -> Image.Image | None:
    """The picture in a file; None, with a warning, if it is damaged or has another size (width, height)."""
    if png_size(data) == size:
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                # A file may name its size twice; the second one counts, and more is unpacked than was asked for.
                if image.size == size:
                    return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
            logger.warning("a picture cannot be shown (%s)", type(error).__name__)
            return None
    logger.warning("a picture cannot be shown: it is no PNG of %d x %d pixels", *size)
    return None
