"""The adapters of rows (LoRAs, controls, images), loaded once for all runs that are sampled together."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_regional_diffusion.sampling_core.models.ip_adapter_rows import ImageLayers
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers
from prefect_regional_diffusion.sampling_core.models.model_key import LoraKeys
from prefect_regional_diffusion.sampling_core.models.row_adapters import ControlName, ControlSource, LoadedAdapters
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext


def load_adapters(runs: Sequence[RenderContext]) -> LoadedAdapters:
    """Read all adapters that rows of these runs may have. Maps of T2I-Adapters are computed here.

    Raises ModelError, and StoreError for an image of which the store has nothing.
    """
    loras: dict[tuple[str, LoraKeys], LoraLayers] = {}
    controls: dict[ControlName, ControlSource] = {}
    images: dict[tuple[str, str], ImageLayers] = {}
    for run in runs:
        for model, keys in run.sampling_run.adapters:
            if keys.loras and (model, keys.loras) not in loras:
                # A file may act on the text encoders alone.
                loras[model, keys.loras] = next(iter(run.lora_layers(model, keys.loras, "denoiser")), {})
            for key in keys.controls:
                if (key.network, key.picture) not in controls:
                    controls[key.network, key.picture] = run.control(model, key)
        for model, fingerprint in run.images:
            if (model, fingerprint) not in images:
                images[model, fingerprint] = run.image_layers(model, fingerprint)
    return LoadedAdapters(loras, controls, images)
