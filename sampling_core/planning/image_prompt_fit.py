"""A job's image prompts as their files have them, and at which noise levels they count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.job.resolved import ParticipantSettings, ResolvedJob
from prefect_regional_diffusion.sampling_core.job.resolved_image_prompts import ResolvedImagePrompt
from prefect_regional_diffusion.sampling_core.models.image_encoder import ImageEncoderFolder
from prefect_regional_diffusion.sampling_core.models.ip_adapter_file import IPAdapter
from prefect_regional_diffusion.sampling_core.models.model_key import ImagePromptKey
from prefect_regional_diffusion.sampling_core.names import CFG_PP
from prefect_regional_diffusion.sampling_core.schedules.level_range import level_range


class ImagePromptFiles(NamedTuple):
    """The files of a job's image prompts, looked at; by model and path, and by path."""

    adapters: Mapping[tuple[str, str], IPAdapter]
    encoders: Mapping[str, ImageEncoderFolder]


def fit_image_prompts(job: ResolvedJob, files: ImagePromptFiles, digests: Mapping[str, str]) -> ResolvedJob:
    """The job with each participant's image prompts known by their content, in one order: equal sums are equal rows.

    `digests` are SHA-256 of pictures by path. Fitting again changes nothing.
    """

    def fit_participant(settings: ParticipantSettings) -> ParticipantSettings:
        prompts = [_fit_prompt(settings, prompt, files, digests) for prompt in settings.image_prompts]
        return settings._replace(image_prompts=tuple(sorted(prompts, key=_order)))

    regions = tuple(region._replace(settings=fit_participant(region.settings)) for region in job.regions)
    return replace(job, base=fit_participant(job.base), regions=regions)


def fingerprint(adapter: IPAdapter, encoder: ImageEncoderFolder, picture: str | None) -> str:
    """SHA-256 in hex of what an adapter makes of a picture, by the SHA-256 of its file; None: of no picture."""
    return content_hash([adapter.fingerprint(), encoder.fingerprint(), picture])


def image_prompt_keys(settings: ParticipantSettings, sigmas: Sequence[float]) -> tuple[ImagePromptKey, ...]:
    """What a participant's rows attend to, by content; `sigmas` are those of the job's own schedule, noisiest first.

    Raises BadInput for an image prompt between whose start and end there is no step.
    """
    guided = settings.sampler in CFG_PP or not math.isclose(settings.cfg, 1.0)
    has_negative_rows = guided and not settings.embedded
    return tuple(
        ImagePromptKey(
            prompt.fingerprint,
            prompt.strength,
            level_range(sigmas, prompt.start, prompt.end, prompt.field),
            prompt.no_image if has_negative_rows else "",
        )
        for prompt in settings.image_prompts
    )


def described_image_prompts(files: ImagePromptFiles) -> list[str]:
    """One line for each adapter and model: what it makes of an image, and on what it acts."""
    return [
        f"{adapter.files.model} makes {adapter.tokens} tokens of an image, for {len(adapter.plan.layers)} layers"
        for adapter in files.adapters.values()
    ]


def _fit_prompt(
    settings: ParticipantSettings, prompt: ResolvedImagePrompt, files: ImagePromptFiles, digests: Mapping[str, str]
) -> ResolvedImagePrompt:
    adapter, encoder = files.adapters[settings.model, prompt.file], files.encoders[prompt.image_encoder]
    return prompt._replace(
        fingerprint=fingerprint(adapter, encoder, digests[prompt.image]),
        no_image=fingerprint(adapter, encoder, None),
    )


def _order(prompt: ResolvedImagePrompt) -> tuple[str, float, float, float]:
    return prompt.fingerprint, prompt.strength, prompt.start, prompt.end
