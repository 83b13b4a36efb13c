"""The LoRAs of a job and of its regions with nothing left to look up."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields, Region


class ResolvedLora(NamedTuple):
    """A LoRA: the field that names its file, the file, and its strengths.

    `sha256` is of the file, and empty as long as nobody has looked at it (`fit_loras`).
    """

    field: str
    file: str
    strength: float
    text_strength: float
    sha256: str = ""


class LoraUse(NamedTuple):
    """A LoRA and the model that it is added to, with the field that names the file."""

    field: str
    model: str
    file: str


def resolved_loras(job: JobFields, region: Region | None, index: int) -> tuple[ResolvedLora, ...]:
    """The LoRAs of a region, its own or its job's, or of the base (None). One without any strength is none."""
    region_loras = None if region is None else region.loras
    loras, prefix = (job.loras, "loras") if region_loras is None else (region_loras, f"regions.{index}.loras")
    resolved = [
        ResolvedLora(
            f"{prefix}.{i}.file",
            lora.file,
            lora.strength,
            lora.strength if lora.text_strength is None else lora.text_strength,
        )
        for i, lora in enumerate(loras)
    ]
    return tuple(lora for lora in resolved if lora.strength or lora.text_strength)
