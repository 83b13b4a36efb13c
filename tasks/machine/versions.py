"""Versions of what is installed; each is looked up once, because that parses a file of many lines."""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata


@lru_cache(maxsize=64)
def version(package: str) -> str:
    """Of a package. Raises importlib.metadata.PackageNotFoundError."""
    return metadata.version(package)
