"""Recorded results of ComfyUI 0.3.64 on tiny networks, and how to read them.

Latents in the files are unscaled: inside sampling they are multiplied by 0.18215.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent
CASES: list[dict[str, Any]] = [json.loads(line) for line in (FOLDER / "cases.jsonl").read_text().splitlines()]
SCALING = 0.18215


@cache
def tensors(group: str) -> dict[str, Tensor]:
    """Expected tensors of a group, by case id."""
    return load_file(FOLDER / "expected" / f"{group}.safetensors")


@cache
def latents() -> dict[str, Tensor]:
    return load_file(FOLDER / "latents.safetensors")


@cache
def conditionings() -> dict[str, Tensor]:
    return load_file(FOLDER / "conditionings.safetensors")
