"""LoRA files of jobs: looked at with the model that they are for, and read when a row or a prompt needs them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack

from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.models.family import Checkpoint, Facts
from prefect_regional_diffusion.sampling_core.models.files import find_file
from prefect_regional_diffusion.sampling_core.models.lora_file import Lora, LoraPart
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers, combined
from prefect_regional_diffusion.sampling_core.models.model_key import LoraKeys
from prefect_regional_diffusion.tasks.inputs.file_names import portable_name, shown_path
from prefect_regional_diffusion.tasks.inputs.file_search import find_place
from prefect_regional_diffusion.tasks.machine.load_listener import told
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts

Loras = dict[tuple[str, str], Lora]
"""By model and path."""


def open_loras(job: ResolvedJob, models: Mapping[str, Checkpoint]) -> Loras:
    """Compare the headers of a job's LoRAs with the models that they are for. Raises BadInput or ModelError."""
    found: Loras = {}
    for field, model, path in job.lora_uses:
        if (model, path) not in found:
            file = find_file(field, shown_path(path), find_place(field, path, "LoRA"))
            found[model, path] = models[model].open_lora(file)
    return found


def lora_layers(loras: Loras, model: str, facts: Facts, keys: LoraKeys, part: LoraPart) -> tuple[LoraLayers, ...]:
    """What is added to each network of a part of a model, where and as the networks compute. Raises ModelError."""
    by_content = {lora.fingerprint(): lora for (name, _), lora in loras.items() if name == model}
    placement = settings().placement(facts)
    strengths = [key.strength if part == "denoiser" else key.text_strength for key in keys]
    acting = [(key, strength) for key, strength in zip(keys, strengths, strict=True) if strength]
    with ExitStack() as held:
        read = [held.enter_context(_read(by_content[key.fingerprint], part)) for key, _ in acting]
        return tuple(
            combined(
                [(layers, strength) for layers, (_, strength) in zip(of, acting, strict=True)],
                placement.device,
                placement.dtype,
            )
            for of in zip(*read, strict=True)
        )


def _read(lora: Lora, part: LoraPart) -> AbstractContextManager[tuple[LoraLayers, ...]]:
    """What a file has for a part of its model, which stays in memory within the block."""
    # Whose layers a file has depends on the model as well.
    networks = tuple(tuple(network) for network in getattr(lora, part))
    size = lora.part_bytes(part)

    def load() -> tuple[LoraLayers, ...]:
        with told(f"LoRA {portable_name(lora.files.model)}", size):
            return lora.read(part)

    return loaded_parts().using((lora.fingerprint(), part, networks), size, load)
