"""Masks that were drawn already, so that each distinct one is drawn once."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.bounded_cache import BoundedCache
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask


class DrawnMasks(BoundedCache[str, AnyMask]):
    """Masks by what they were drawn from, at most so many bytes of them."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(most_bytes, lambda mask: mask.nbytes)
