"""Everything that can be known about a job without loading weights: its masks, its plan, its cost, its mistakes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open

from sampling_core._types import Mask
from sampling_core.job import RenderJob, content_hash
from sampling_core.models.folder import ModelFolder, open_folder
from sampling_core.plan import Cost, cost, make_plan, region_masks, warnings
from sampling_core.sampler import Plan
from tasks.files import read_mask_files
from tasks.settings import settings

FORMAT = 2
"""Part of every key: raise it when the arithmetic of masks or samplers changes, so that nothing old is continued."""


@dataclass(frozen=True)
class Prepared:
    """A job that is known to be drawable. `job_hash` names its meaning, `mask_hash` that of its masks."""

    job: RenderJob
    job_hash: str
    mask_hash: str
    model_fingerprint: str
    folder: ModelFolder
    masks: tuple[Mask, ...]
    plan: Plan

    @cached_property
    def cost(self) -> Cost:
        return cost(self.plan)

    def warnings(self) -> list[str]:
        return warnings(self.job, self.plan, self.folder.trained_pixels)

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
    meaning = job.meaning(digests)
    shapes = [(region["mask"], region["feather"]) for region in meaning["regions"]]
    return Prepared(
        job=job,
        job_hash=content_hash(meaning),
        mask_hash=content_hash([FORMAT, shapes, job.width, job.height, folder.cell]),
        model_fingerprint=fingerprint,
        folder=folder,
        masks=masks,
        plan=make_plan(job, folder.levels, folder.cell, masks),
    )
