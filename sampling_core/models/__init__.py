"""The only importer of diffusers and transformers: model folders and files in, plain torch callables out."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = Path(__file__).parent / "embedded"
"""Folder of the small model that comes with the package."""
CLIP_TOKENIZER = Path(__file__).parent / "clip_tokenizer"
"""Vocabulary and merges of CLIP's tokenizer, which every published Stable Diffusion has, and no single file."""
