"""Where and how a machine runs the networks of a model. A job says nothing of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

WeightsInMemory = Literal["auto", "stored", "computed"]
"""Matrices as narrow as in their file, widened layer by layer when they are used, to the same bits; or all as wide as
the networks compute; `auto` is `stored` of fp8 and `computed` of the rest."""

Offload = Literal["none", "model", "sequential"]
"""What is not used lies in the host's memory: nothing; parts that no job is in (`model`); and all layers but the one
that is at work (`sequential`), which is slow and needs least."""

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
"""Modes of `torch.compile`."""
COMPILE_MODES: tuple[CompileMode, ...] = get_args(CompileMode)


@dataclass(frozen=True)
class Placement:
    """What a machine has chosen for the networks of a model."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    """Of the numbers that the networks compute with."""
    weights: WeightsInMemory = "auto"
    offload: Offload = "none"
    compiled: CompileMode | None = None
    """How denoisers are compiled, if they are. It changes the last bits."""
    tile: int | None = None
    """Edge of a tile in pixels. A picture that is longer in one direction is encoded and decoded in tiles, whose edges
    are blended: values differ a little from those of the whole picture. None: never."""

    @property
    def loaded_to(self) -> str:
        """The device that weights are read to."""
        return self.device if self.offload == "none" else "cpu"
