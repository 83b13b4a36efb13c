"""The image prompts of a job and of its regions with nothing left to look up."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields, Region

BESIDE = "image_encoder"
"""Folder of the image encoder of adapters that lie beside it."""


class ImagePromptUse(NamedTuple):
    """The files of an image prompt, with the field that it stands in, and the model that it is for."""

    field: str
    model: str
    file: str
    image: str
    image_encoder: str


class ResolvedImagePrompt(NamedTuple):
    """An image prompt: the field that it stands in, its files, its strength, and its share of the steps.

    `fingerprint` is the SHA-256, in hex, of adapter, encoder and picture, `no_image` of what stands for no picture;
    both are empty as long as nobody has looked at the files (`fit_image_prompts`).
    """

    field: str
    file: str
    image: str
    image_encoder: str
    strength: float
    start: float
    end: float
    fingerprint: str = ""
    no_image: str = ""

    def used_by(self, model: str) -> ImagePromptUse:
        return ImagePromptUse(self.field, model, self.file, self.image, self.image_encoder)


def resolved_image_prompts(job: JobFields, region: Region | None, index: int) -> tuple[ResolvedImagePrompt, ...]:
    """The image prompts of a region, its own or its job's, or of the base (None). One without strength is none."""
    region_prompts = None if region is None else region.image_prompts
    prompts, prefix = (
        (job.image_prompts, "image_prompts")
        if region_prompts is None
        else (region_prompts, f"regions.{index}.image_prompts")
    )
    return tuple(
        ResolvedImagePrompt(
            field=f"{prefix}.{i}",
            file=prompt.file,
            image=prompt.image,
            image_encoder=prompt.image_encoder or _beside(prompt.file),
            strength=prompt.strength,
            start=prompt.start,
            end=prompt.end,
        )
        for i, prompt in enumerate(prompts)
        if prompt.strength
    )


def _beside(file: str) -> str:
    """The folder of an encoder beside a file, spelled as the file is."""
    folder, sign, _ = file.rpartition("/")
    return f"{folder}{sign}{BESIDE}"
