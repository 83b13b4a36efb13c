"""Networks that torch compiles. Hooks that are registered for one forward are not seen by code compiled before."""

from __future__ import annotations

from typing import Any

import torch

from prefect_regional_diffusion.sampling_core.models.placement import CompileMode


def compiled(network: Any, mode: CompileMode) -> Any:
    """The network, compiled on its first call with inputs of each shape; it has the same weights."""
    # One program for each shape: one for all of them would depend on which of them came first, and so would the bits.
    return torch.compile(network, mode=mode, dynamic=False)


def uncompiled(network: Any) -> Any:
    """The original of a compiled network, which runs hooks; any other network as it is."""
    return getattr(network, "_orig_mod", network)
