"""The only importer of diffusers and transformers: model folders in, plain torch callables out."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = Path(__file__).parent / "embedded"
"""Folder of the small model that comes with the package."""
