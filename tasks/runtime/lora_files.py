"""LoRA files of jobs: compared with the models that they are for, and read when a row or a prompt needs them."""

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
from prefect_regional_diffusion.tasks.machine.load_listener import report_load
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.loaded_parts import counted_use

Loras = dict[tuple[str, str], Lora]
"""By model and path."""


def open_loras(job: ResolvedJob, models: Mapping[str, Checkpoint]) -> Loras:
    """Compare the headers of a job's LoRAs with the models that they are for. Raises BadInput or ModelError."""
    loras: Loras = {}
    for field, model, path in job.lora_uses:
        if (model, path) not in loras:
            file = find_file(field, shown_path(path), find_place(field, path, "LoRA"))
            loras[model, path] = models[model].open_lora(file)
    return loras


def lora_layers(loras: Loras, model: str, facts: Facts, keys: LoraKeys, part: LoraPart) -> tuple[LoraLayers, ...]:
    """What is added to each network of a part of a model, on its device and in its type. Raises ModelError."""
    by_content = {lora.fingerprint(): lora for (name, _), lora in loras.items() if name == model}
    placement = settings().placement(facts)
    strengths = [key.strength if part == "denoiser" else key.text_strength for key in keys]
    active_keys = [(key, strength) for key, strength in zip(keys, strengths, strict=True) if strength]
    with ExitStack() as stack:
        layers_by_file = [stack.enter_context(_read(by_content[key.fingerprint], part)) for key, _ in active_keys]
        return tuple(
            combined(
                [(layers, strength) for layers, (_, strength) in zip(layers_of_files, active_keys, strict=True)],
                placement.device,
                placement.dtype,
            )
            for layers_of_files in zip(*layers_by_file, strict=True)
        )


def _read(lora: Lora, part: LoraPart) -> AbstractContextManager[tuple[LoraLayers, ...]]:
    """A file's layers for a part of its model, which stay in memory within the block."""
    # Whose layers a file has depends on the model as well.
    networks = tuple(tuple(network) for network in getattr(lora, part))
    size = lora.part_bytes(part)

    def load() -> tuple[LoraLayers, ...]:
        with report_load(f"LoRA {portable_name(lora.files.model)}", size):
            return lora.read(part)

    # Held is a LoRA whose layers of the denoiser are: most have none of the text encoders.
    name = lora.files.model if part == "denoiser" else None
    return counted_use("lora", (lora.fingerprint(), part, networks), size, load, name)
