"""What a network is known by in keys of the store: its weights, and what is added to them."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.hashing import content_hash


class LoraKey(NamedTuple):
    """A LoRA: the file, and how strongly it acts on the denoiser and on the text encoders."""

    fingerprint: str
    """SHA-256 of the file, in hex."""
    strength: float
    text_strength: float


LoraKeys = tuple[LoraKey, ...]
"""Those of one network row, each file once."""


class AdapterKeys(NamedTuple):
    """What a network row has beside its prompt, by content; equal keys get equal answers."""

    loras: LoraKeys = ()


NO_ADAPTERS = AdapterKeys()


class ModelKey(NamedTuple):
    """Two models with the same key give the same predictions."""

    weights: str
    """SHA-256 over all files that are read of the model, in hex."""
    loras: LoraKeys = ()

    @property
    def digest(self) -> str:
        """SHA-256 in hex; of a model without LoRAs that of its weights."""
        if not self.loras:
            return self.weights
        return content_hash([self.weights, [list(lora) for lora in self.loras]])

    @property
    def text_digest(self) -> str:
        """The same of its text encoders: what acts on the denoiser alone changes no encoded prompt."""
        texts = tuple(lora._replace(strength=0.0) for lora in self.loras if lora.text_strength)
        return self._replace(loras=texts).digest
