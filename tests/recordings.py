"""Recorded results of the original nodes: cases, the tensors they name, and the networks they ran on."""

from __future__ import annotations

import json
import math
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

Case = dict[str, Any]
SCALING = 0.18215
"""Stored latents are unscaled: model space is this times as much."""


class Recordings:
    """A folder of recordings. Latents are [b, 4, h, w] at the node boundary, masks float32 in [0, 1]."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def cases(self) -> list[Case]:
        return [json.loads(line) for line in (self.folder / "cases.jsonl").read_text().splitlines()]

    @cached_property
    def _latents(self) -> dict[str, Tensor]:
        return load_file(self.folder / "latents.safetensors")

    @cached_property
    def _masks(self) -> dict[str, Tensor]:
        return load_file(self.folder / "masks.safetensors")

    @cached_property
    def conditionings(self) -> dict[str, Tensor]:
        """Embeddings [1, 8, 32] by name."""
        return load_file(self.folder / "conditionings.safetensors")

    def latent(self, name: str) -> Tensor:
        return self._latents[name].clone()

    def mask(self, name: str) -> Tensor:
        return self._masks[name].float() / 255

    @cache  # noqa: B019 - one object per run of the tests
    def _expected(self, group: str) -> dict[str, Tensor]:
        return load_file(self.folder / "expected" / f"{group}.safetensors")

    def expected(self, case: Case) -> Tensor:
        """The recorded tensor of a case, unpacked."""
        expect = case["expect"]
        stored = self._expected(case["group"])[expect["tensor"]]
        shape = expect["shape"]
        if expect.get("packed_bits"):
            bits = np.unpackbits(stored.numpy().astype(np.uint8))[: math.prod(shape)]
            return torch.from_numpy(bits).float().reshape(shape)
        if expect.get("channels_equal_stored_first"):
            return stored.float().expand(shape)
        return stored


def tolerance(case: Case) -> float:
    """As the recordings suggest: rounding, and how much this case amplifies it."""
    return max(2e-4 * max(case["expect"].get("std", 0.0), 1), 20 * case.get("sensitivity_1e-6", 0.0))
