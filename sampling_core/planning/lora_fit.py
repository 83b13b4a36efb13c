"""A job's LoRAs as their files have them: who they are, and on what they act at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from prefect_regional_diffusion.sampling_core.job.resolved import ParticipantSettings, ResolvedJob
from prefect_regional_diffusion.sampling_core.job.resolved_loras import ResolvedLora
from prefect_regional_diffusion.sampling_core.models.lora_file import Lora


def fit_loras(job: ResolvedJob, files: Mapping[tuple[str, str], Lora]) -> ResolvedJob:
    """The job with each participant's LoRAs known by their content, in one order, each file once.

    A file that is named twice counts with both strengths, and what a file has no weights for has no strength, so that
    equal sums are equal rows. `files` are by model and path. Fitting again changes nothing.
    """
    return replace(
        job,
        base=_fitted(job.base, files),
        regions=tuple(region._replace(settings=_fitted(region.settings, files)) for region in job.regions),
    )


def described(files: Mapping[tuple[str, str], Lora]) -> list[str]:
    """One line for each LoRA and model: on what it acts."""
    return [
        f"{lora.files.model} acts on {lora.layers('denoiser')} layers of the denoiser and "
        f"{lora.layers('text_encoder')} of the text encoders"
        for lora in files.values()
    ]


def _fitted(settings: ParticipantSettings, files: Mapping[tuple[str, str], Lora]) -> ParticipantSettings:
    found: dict[str, ResolvedLora] = {}
    for lora in settings.loras:
        file = files[settings.model, lora.file]
        sha256 = file.fingerprint()
        known = found.get(sha256, lora._replace(sha256=sha256, strength=0.0, text_strength=0.0))
        found[sha256] = known._replace(
            strength=known.strength + (lora.strength if file.layers("denoiser") else 0.0),
            text_strength=known.text_strength + (lora.text_strength if file.layers("text_encoder") else 0.0),
        )
    acting = [found[sha256] for sha256 in sorted(found) if found[sha256].strength or found[sha256].text_strength]
    return settings._replace(loras=tuple(acting))
