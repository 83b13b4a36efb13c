"""LoRA files of jobs: looked at with the model that they are for, and read when a row or a prompt needs them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.masks.bounded_cache import BoundedCache
from prefect_regional_diffusion.sampling_core.models.family import Checkpoint
from prefect_regional_diffusion.sampling_core.models.files import find_file
from prefect_regional_diffusion.sampling_core.models.lora_file import Lora, LoraPart
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers, combined
from prefect_regional_diffusion.sampling_core.models.model_key import LoraKeys
from prefect_regional_diffusion.tasks.inputs.file_names import shown_path
from prefect_regional_diffusion.tasks.inputs.path_policy import adapter_place
from prefect_regional_diffusion.tasks.machine.settings import settings

Loras = dict[tuple[str, str], Lora]
"""By model and path."""


def open_loras(job: ResolvedJob, models: Mapping[str, Checkpoint]) -> Loras:
    """Compare the headers of a job's LoRAs with the models that they are for. Raises BadInput or ModelError."""
    found: Loras = {}
    for field, model, path in job.lora_uses:
        if (model, path) not in found:
            file = find_file(field, shown_path(path), adapter_place(field, path))
            found[model, path] = models[model].open_lora(file)
    return found


def lora_layers(loras: Loras, model: str, keys: LoraKeys, part: LoraPart) -> tuple[LoraLayers, ...]:
    """What is added to each network of a part of a model, on the device of the settings. Raises ModelError."""
    by_content = {lora.fingerprint(): lora for (name, _), lora in loras.items() if name == model}
    device, dtype = settings().torch_device(), settings().torch_dtype()
    strengths = [key.strength if part == "denoiser" else key.text_strength for key in keys]
    read = [
        (_read(by_content[key.fingerprint], part), strength)
        for key, strength in zip(keys, strengths, strict=True)
        if strength
    ]
    networks = zip(*(layers for layers, _ in read), strict=True)
    return tuple(
        combined([(layers, strength) for layers, (_, strength) in zip(of, read, strict=True)], device, dtype)
        for of in networks
    )


def _read(lora: Lora, part: LoraPart) -> tuple[LoraLayers, ...]:
    # Whose layers a file has depends on the model as well.
    networks = tuple(tuple(network) for network in getattr(lora, part))
    return _cache().get((lora.fingerprint(), part, networks), lambda: lora.read(part))


@lru_cache(maxsize=1)
def _cache() -> BoundedCache[object, tuple[LoraLayers, ...]]:
    """Those that this process has read last."""
    return BoundedCache(settings().max_lora_bytes, _bytes)


def _bytes(networks: tuple[LoraLayers, ...]) -> int:
    return sum(tensor.nbytes for layers in networks for layer in layers.values() for tensor in layer)
