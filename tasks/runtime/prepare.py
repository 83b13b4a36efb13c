"""Everything that can be known about a job without loading weights: its masks, its plan, its cost, its mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.masks.mask_cache import DrawnMasks
from prefect_regional_diffusion.sampling_core.masks.rasterize import to_lattice
from prefect_regional_diffusion.sampling_core.models.folder import ModelFolder, check_alike
from prefect_regional_diffusion.sampling_core.planning.canonical_job import mask_meaning, meaning
from prefect_regional_diffusion.sampling_core.planning.compile import Cost, compose, cost, warnings
from prefect_regional_diffusion.sampling_core.planning.image_advice import image_warnings
from prefect_regional_diffusion.sampling_core.planning.prompt_advice import prompt_warnings
from prefect_regional_diffusion.sampling_core.planning.region_masks import mask_size, protected_pixels, region_masks
from prefect_regional_diffusion.sampling_core.planning.savings import savings
from prefect_regional_diffusion.sampling_core.tensors.types import Latent
from prefect_regional_diffusion.tasks.inputs.image_files import ImageFiles, read_image_files, resized
from prefect_regional_diffusion.tasks.inputs.limits import check_drawn, check_evaluations, check_latents, check_limits
from prefect_regional_diffusion.tasks.inputs.path_policy import open_model
from prefect_regional_diffusion.tasks.machine.settings import settings

FORMAT = 8
"""Part of every key: raise it when the arithmetic of masks or samplers changes, so that nothing old is continued."""


@dataclass(frozen=True)
class Prepared:
    """A job that is known to be drawable. `job_hash` names its meaning, `mask_hash` that of its masks and pictures.

    `folders` and `fingerprints` are by model; `digests` are of all files that it names, weights among them, by path;
    `inputs` is what is kept of its images, by name; `of_images` are warnings of these.
    """

    job: RenderJob
    job_hash: str
    mask_hash: str
    fingerprints: dict[str, str]
    digests: dict[str, str]
    folders: dict[str, ModelFolder]
    inputs: dict[str, Tensor]
    of_images: list[str]
    run: SamplingRun[Any]

    @property
    def folder(self) -> ModelFolder:
        """The job's own model."""
        return self.folders[self.job.model]

    @cached_property
    def cost(self) -> Cost:
        # Of a job with more evaluations, which is refused, no more are counted.
        return cost(self.run, settings().max_rows, settings().max_evaluations)

    def savings(self) -> list[str]:
        return savings(self.run, self.cost.shared_rows)

    def warnings(self) -> list[str]:
        found = warnings(self.job, self.run, self.folder.trained_pixels)
        return [*found, *self.of_images, *prompt_warnings(self.job, self.run.prompts, self.folders)]

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
        weights = sum(folder.numbers for folder in self.folders.values())
        return (weights + max(forward, decoding)) * bytes_per_value


@lru_cache(maxsize=1)
def drawn_masks() -> DrawnMasks:
    """The masks that this process has drawn last: the cells of a grid have the same ones."""
    return DrawnMasks(settings().max_tensor_bytes)


def prepare(job: RenderJob) -> Prepared:
    """Check a job against its files and its model folders. Raises BadInput or ModelError."""
    settings().check()
    check_limits(job)
    named = {"model": job.model}
    named |= {f"regions.{i}.model": region.model for i, region in enumerate(job.regions) if region.model is not None}
    folders: dict[str, ModelFolder] = {}
    for field, name in named.items():
        if name not in folders:
            folders[name] = open_model(name, field)
    check_alike(named, folders)
    folder = folders[job.model]
    check_latents(job, folder.cell, folder.latent_channels)
    fingerprints = {name: other.fingerprint() for name, other in folders.items()}
    files = read_image_files(job)
    check_drawn(job, {path: photo.shape[0] * photo.shape[1] for path, photo in files.photos.items()})
    digests = {**files.digests, **fingerprints}
    means = meaning(job, digests)
    drawn = [(mask_meaning(mask, digests), mask_size(job, mask.field)) for mask in job.drawn_masks()]
    pictures = [means.get("start"), means.get("protect")]
    mask_means = [FORMAT, job.composition, drawn, pictures, job.width, job.height, folder.cell]
    inputs = _inputs(job, files, folder.cell)
    prepared = Prepared(
        job=job,
        job_hash=content_hash(means),
        mask_hash=content_hash(mask_means),
        fingerprints=fingerprints,
        digests=digests,
        folders=folders,
        inputs=inputs,
        of_images=image_warnings(job, files.photos),
        run=composed(job, folders, inputs, empty_latent(job, folder)),
    )
    check_evaluations("job", prepared.cost.evaluations)
    return prepared


def _inputs(job: RenderJob, files: ImageFiles, cell: int) -> dict[str, Tensor]:
    """Masks `0`, `1`, ... of the regions; of a start image, `picture` in canvas pixels, and what is `protected`."""
    photos = files.photos
    masks = region_masks(job, photos, cell, files.digests, drawn_masks())
    inputs: dict[str, Tensor] = {f"{i}": mask for i, mask in enumerate(masks)}
    if job.start_image is not None:
        inputs["picture"] = resized(photos[job.start_image], (job.height, job.width), job.start_fit)
        protected = protected_pixels(job, photos)
        if protected is not None:
            inputs["protected"] = protected
    return inputs


def empty_latent(job: RenderJob, folder: ModelFolder) -> Latent:
    """The latent [b, c, h, w] of a job that starts from noise alone."""
    return torch.zeros(job.pictures, folder.latent_channels, job.height // folder.cell, job.width // folder.cell)


def composed(
    job: RenderJob, folders: Mapping[str, ModelFolder], inputs: Mapping[str, Tensor], clean: Latent
) -> SamplingRun[Any]:
    """The run of a job, from what was made of its images and the latent that it starts with."""
    masks = [inputs[f"{i}"] for i in range(len(job.drawn_masks()))]
    protected = inputs.get("protected")
    lattice = None if protected is None else to_lattice(protected, folders[job.model].cell)
    levels = {name: folder.levels for name, folder in folders.items()}
    return compose(job, levels, clean, masks, lattice)
