"""A job's LoRAs resolved with their files: SHA-256 of each, and the layers on which it acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from prefect_regional_diffusion.sampling_core.job.resolved import ParticipantSettings, ResolvedJob
from prefect_regional_diffusion.sampling_core.job.resolved_loras import ResolvedLora
from prefect_regional_diffusion.sampling_core.models.lora_file import Lora


def fit_loras(job: ResolvedJob, files: Mapping[tuple[str, str], Lora]) -> ResolvedJob:
    """The job with each participant's LoRAs identified by their content, in one order, each file once.

    A file that is named twice counts with both strengths, and what a file has no weights for has no strength, so that
    equal sums are equal rows. `files` are by model and path. Fitting again changes nothing.
    """
    return replace(
        job,
        base=_fit_participant(job.base, files),
        regions=tuple(region._replace(settings=_fit_participant(region.settings, files)) for region in job.regions),
    )


def described(files: Mapping[tuple[str, str], Lora]) -> list[str]:
    """One line for each LoRA and model: on what it acts."""
    return [
        f"{lora.files.model} acts on {lora.layers('denoiser')} layers of the denoiser and "
        f"{lora.layers('text_encoder')} of the text encoders"
        for lora in files.values()
    ]


def _fit_participant(settings: ParticipantSettings, files: Mapping[tuple[str, str], Lora]) -> ParticipantSettings:
    loras: dict[str, ResolvedLora] = {}
    for lora in settings.loras:
        file = files[settings.model, lora.file]
        sha256 = file.fingerprint()
        merged = loras.get(sha256, lora._replace(sha256=sha256, strength=0.0, text_strength=0.0))
        loras[sha256] = merged._replace(
            strength=merged.strength + (lora.strength if file.layers("denoiser") else 0.0),
            text_strength=merged.text_strength + (lora.text_strength if file.layers("text_encoder") else 0.0),
        )
    active = [loras[sha256] for sha256 in sorted(loras) if loras[sha256].strength or loras[sha256].text_strength]
    return settings._replace(loras=tuple(active))
