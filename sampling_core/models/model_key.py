"""What a network is known by in keys of the store: its weights, and what is added to them."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.hashing import content_hash


class Adapter(NamedTuple):
    """Weights that are added to a model's own, such as a LoRA's."""

    fingerprint: str
    """SHA-256 of the file, in hex."""
    strength: float


class ModelKey(NamedTuple):
    """Two models with the same key give the same predictions."""

    weights: str
    """SHA-256 over all files that are read of the model, in hex."""
    adapters: tuple[Adapter, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 in hex; of a model without adapters that of its weights."""
        if not self.adapters:
            return self.weights
        return content_hash([self.weights, [list(adapter) for adapter in self.adapters]])
