"""What a network is known by in keys of the store: its weights, and what is added to them."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.schedules.level_range import ALL_LEVELS, LevelRange


class LoraKey(NamedTuple):
    """A LoRA: the file, and how strongly it acts on the denoiser and on the text encoders."""

    fingerprint: str
    """SHA-256 of the file, in hex."""
    strength: float
    text_strength: float


LoraKeys = tuple[LoraKey, ...]
"""Those of one network row, each file once."""


class ControlKey(NamedTuple):
    """A ControlNet or T2I-Adapter, the picture that it reads, and how strongly and when it acts."""

    network: str
    """SHA-256 of its files, in hex."""
    picture: str
    """SHA-256 of its pixels, in hex."""
    strength: float
    every_step: bool
    """Whether it reads the latent as well, and so works in every step."""
    window: LevelRange = ALL_LEVELS


class ImagePromptKey(NamedTuple):
    """An image that rows attend to, by content, how strongly, and when."""

    fingerprint: str
    """SHA-256 in hex, of IP-Adapter, image encoder and picture."""
    strength: float
    window: LevelRange = ALL_LEVELS
    no_image: str = ""
    """The fingerprint of what stands for no picture in rows of negative prompts."""


class AdapterKeys(NamedTuple):
    """What network rows have beside their prompts, by content; equal keys get equal answers."""

    loras: LoraKeys = ()
    controls: tuple[ControlKey, ...] = ()
    image_prompts: tuple[ImagePromptKey, ...] = ()

    @property
    def num_every_step(self) -> int:
        """How many ControlNets work in every step."""
        return sum(key.every_step for key in self.controls)

    def at(self, sigma: float, *, negative: bool = False) -> AdapterKeys:
        """The adapters that act on a row at a level, with a negative prompt or another: rows with equal results are
        equal there, whatever acts on them at other levels."""
        active_controls = tuple(key._replace(window=ALL_LEVELS) for key in self.controls if key.window.has(sigma))
        active_images = (key for key in self.image_prompts if key.window.has(sigma))
        images = tuple(
            ImagePromptKey(key.no_image if negative else key.fingerprint, key.strength) for key in active_images
        )
        return self._replace(controls=active_controls, image_prompts=images)


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
        text_loras = tuple(lora._replace(strength=0.0) for lora in self.loras if lora.text_strength)
        return self._replace(loras=text_loras).digest
