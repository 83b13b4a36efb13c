"""What the rows of one forward have beside their latents, levels and first prompts: each row its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.models.control_rows import AdapterMaps, ControlNetHint, RowControl
from prefect_regional_diffusion.sampling_core.models.ip_adapter_rows import ImageLayers, RowImage
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers, LowRank
from prefect_regional_diffusion.sampling_core.models.model_key import AdapterKeys, LoraKeys
from prefect_regional_diffusion.sampling_core.models.prompt_rows import RowPrompt
from prefect_regional_diffusion.sampling_core.tensors.window import Lattice, Window

ControlName = tuple[str, str]
"""SHA-256 of a ControlNet or T2I-Adapter and of the picture that it reads."""
ControlSource = ControlNetHint | AdapterMaps
_NO_LORAS: Mapping[str, LowRank] = MappingProxyType({})


class RowAdapters(NamedTuple):
    """What a denoiser adds for one row, loaded. Without any of it, the row is answered by the network as it is.

    Rows with the same LoRAs, or the same image, have the same object for them.
    """

    loras: LoraLayers = _NO_LORAS
    controls: tuple[RowControl, ...] = ()
    images: tuple[RowImage, ...] = ()
    prompts: tuple[RowPrompt, ...] = ()
    """All prompts that share the row, that of its conditioning first; none if it has that one alone."""

    def within(self, window: Window, lattice: Lattice) -> RowAdapters:
        """The same for a row that shows a window of a canvas of `lattice` cells, and of what lies on it."""
        return self._replace(
            controls=tuple(control.within(window, lattice) for control in self.controls),
            prompts=tuple(prompt.within(window, lattice) for prompt in self.prompts),
        )


@dataclass(frozen=True)
class LoadedAdapters:
    """What the rows of a run may have, by the keys that rows have for it."""

    loras: Mapping[tuple[str, LoraKeys], LoraLayers] = field(default_factory=dict[tuple[str, LoraKeys], LoraLayers])
    """By model."""
    controls: Mapping[ControlName, ControlSource] = field(default_factory=dict[ControlName, ControlSource])
    images: Mapping[tuple[str, str], ImageLayers] = field(default_factory=dict[tuple[str, str], ImageLayers])
    """By model and fingerprint."""

    def of_row(self, model: str, keys: AdapterKeys) -> RowAdapters:
        """What a row of a model has. Raises KeyError for what is not loaded."""
        loras = self.loras[model, keys.loras] if keys.loras else _NO_LORAS
        controls = [RowControl(self.controls[key.network, key.picture], key.strength) for key in keys.controls]
        images = [RowImage(self.images[model, key.fingerprint], key.strength) for key in keys.image_prompts]
        return RowAdapters(loras, tuple(controls), tuple(images))
