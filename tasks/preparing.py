"""Everything that can be known about a job without loading weights: its masks, its plan, its cost, its mistakes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sampling_core._types import AnyMask
from sampling_core.composition import Composition
from sampling_core.job import RenderJob
from sampling_core.meaning import content_hash, meaning, shape_meaning
from sampling_core.models.folder import ModelFolder, open_folder
from sampling_core.plan import Cost, compose, cost, warnings
from sampling_core.region_masks import region_masks
from tasks.files import read_mask_files
from tasks.settings import settings

FORMAT = 3
"""Part of every key: raise it when the arithmetic of masks or samplers changes, so that nothing old is continued."""


@dataclass(frozen=True)
class Prepared:
    """A job that is known to be drawable. `job_hash` names its meaning, `mask_hash` that of its masks."""

    job: RenderJob
    job_hash: str
    mask_hash: str
    model_fingerprint: str
    folder: ModelFolder
    masks: tuple[AnyMask, ...]
    run: Composition[Any]

    @cached_property
    def cost(self) -> Cost:
        return cost(self.run, self.job.model)

    def warnings(self) -> list[str]:
        return warnings(self.job, self.run, self.folder.trained_pixels)

    def memory_bytes(self) -> int:
        """A rough estimate of the peak: weights, and the larger of one forward and the decoding.

        The embedded model keeps 14 first-level maps alive in a forward and 5.5 in the decoder (tensors
        counted while it ran). Larger models have attention and more layers on that level, so the
        factors here are higher; expect the right order of magnitude and no more.
        """
        bytes_per_value = torch.finfo(settings().torch_dtype()).bits // 8
        cells = (self.job.height // self.folder.cell) * (self.job.width // self.folder.cell)
        # Feature maps alive at once in one forward (per row) and in the decoder, in units of the first level's map.
        forward = self.cost.most_rows * cells * self.folder.unet_channels * 24
        decoding = self.job.height * self.job.width * self.folder.vae_channels * 8
        # Files may be stored narrower or wider than they are used: count values, not bytes.
        weights = sum(_values(file) for file in self.folder.weight_files)
        return (weights + max(forward, decoding)) * bytes_per_value


def _values(file: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    with safe_open(file, framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in list(tensors.keys()))


def prepare(job: RenderJob) -> Prepared:
    """Check a job against its files and its model folder. Raises BadInput or ModelError."""
    settings().check()
    folder = open_folder(job.model)
    fingerprint = folder.fingerprint()
    files = read_mask_files(job)
    masks = region_masks(job, files.photos, folder.cell)
    digests = {**files.digests, job.model: fingerprint}
    means = meaning(job, digests)
    drawn = [(shape_meaning(shape, digests), feather) for _, shape, feather in job.drawn_masks()]
    return Prepared(
        job=job,
        job_hash=content_hash(means),
        mask_hash=content_hash([FORMAT, job.composition, means.get("node"), drawn, job.width, job.height, folder.cell]),
        model_fingerprint=fingerprint,
        folder=folder,
        masks=masks,
        run=compose(job, folder.levels, folder.latent_channels, folder.cell, masks),
    )
