"""Prompts that this process has encoded, in a bounded memory: a later run with one of them needs no text encoder."""

from __future__ import annotations

from torch import Tensor

from prefect_regional_diffusion.sampling_core.bounded_cache import BoundedCache
from prefect_regional_diffusion.tasks.machine.once import once
from prefect_regional_diffusion.tasks.storage.keys import TensorKey

_MOST_BYTES = 64 << 20
"""A hundred prompts of Stable Diffusion XL, or seven of FLUX.1 dev."""


def _bytes_of(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


@once
def encoded_prompts() -> BoundedCache[TensorKey, dict[str, Tensor]]:
    """Those of this process, by their key in a store: whichever it is, it would hold the same tensors."""
    return BoundedCache(_MOST_BYTES, _bytes_of)
