"""Pictures as people see them in the UI: small enough for lists that load all of them."""

from __future__ import annotations

import base64
import io

from PIL import Image

PREVIEW_BYTES = 100_000
"""Artifact lists load every picture at once; larger ones make the UI slow."""


def as_data_uri(picture: Image.Image) -> str:
    """A picture as a data URI of a JPEG of at most PREVIEW_BYTES, scaled down as far as that needs."""
    picture = picture.convert("RGB")
    edge = 512
    while True:
        small = picture.copy()
        small.thumbnail((edge, edge))
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=85)
        if buffer.tell() <= PREVIEW_BYTES:
            return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        edge = edge * 3 // 4
