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
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Checkpoint
from prefect_regional_diffusion.sampling_core.models.folder import check_alike
from prefect_regional_diffusion.sampling_core.models.model_key import ModelKey
from prefect_regional_diffusion.sampling_core.planning.canonical_job import mask_meaning, meaning
from prefect_regional_diffusion.sampling_core.planning.compile import Cost, compose, cost, warnings
from prefect_regional_diffusion.sampling_core.planning.image_advice import image_warnings
from prefect_regional_diffusion.sampling_core.planning.prompt_advice import prompt_warnings
from prefect_regional_diffusion.sampling_core.planning.region_masks import mask_size, protected_pixels, region_masks
from prefect_regional_diffusion.sampling_core.planning.savings import savings
from prefect_regional_diffusion.sampling_core.tensors.types import Latent
from prefect_regional_diffusion.tasks.inputs.image_files import ImageFiles, read_image_files, resized
from prefect_regional_diffusion.tasks.inputs.limits import check_canvas, check_evaluations, check_limits
from prefect_regional_diffusion.tasks.inputs.size_limits import check_drawn, check_latents, check_size
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.model_cache import open_model

FORMAT = 9
"""Part of every key: raise it when the arithmetic of masks or samplers changes, so that nothing old is continued."""


@dataclass(frozen=True)
class Prepared:
    """A job that is known to be drawable. `job_hash` names its meaning, `mask_hash` that of its masks and pictures.

    `folders` and `model_keys` are by model; `digests` are of all files that it names, weights among them, by path;
    `inputs` is what is kept of its images, by name; `of_images` are warnings of these.
    """

    job: RenderJob
    job_hash: str
    mask_hash: str
    model_keys: dict[str, ModelKey]
    digests: dict[str, str]
    folders: dict[str, Checkpoint]
    inputs: dict[str, Tensor]
    of_images: list[str]
    run: SamplingRun[Any]

    @property
    def folder(self) -> Checkpoint:
        """The job's own model."""
        return self.folders[self.job.model]

    @cached_property
    def cost(self) -> Cost:
        # Of a job with more evaluations, which is refused, no more are counted.
        return cost(self.run, settings().max_rows, settings().max_evaluations)

    def savings(self) -> list[str]:
        return savings(self.run, self.cost.shared_rows)

    def warnings(self) -> list[str]:
        found = warnings(self.job, self.run, self.folder.facts.trained_pixels)
        return [*found, *self.of_images, *prompt_warnings(self.job, self.run.prompts, self.folders)]

    def memory_bytes(self) -> int:
        """A rough estimate of the peak: weights, and the larger of one forward and the decoding."""
        bytes_per_value = torch.finfo(settings().torch_dtype()).bits // 8
        working = self.folder.working_numbers(canvas_of(self.job), self.cost.most_rows)
        # Files may be stored narrower or wider than they are used: count values, not bytes.
        weights = sum(folder.numbers for folder in self.folders.values())
        return (weights + working) * bytes_per_value


@lru_cache(maxsize=1)
def drawn_masks() -> DrawnMasks:
    """The masks that this process has drawn last: the cells of a grid have the same ones."""
    return DrawnMasks(settings().max_tensor_bytes)


def prepare(job: RenderJob) -> Prepared:
    """Check a job against its files and its model folders. Raises BadInput or ModelError."""
    settings().check()
    check_limits(job)
    check_size(job)
    named = {"model": job.model}
    named |= {f"regions.{i}.model": region.model for i, region in enumerate(job.regions) if region.model is not None}
    folders: dict[str, Checkpoint] = {}
    for field, name in named.items():
        if name not in folders:
            folders[name] = open_model(name, field)
    check_alike(named, folders, canvas_of(job))
    facts = folders[job.model].facts
    check_canvas(job, facts.pixel_multiple)
    check_latents(job, facts.vae_scale_factor, facts.latent_channels)
    model_keys = {name: ModelKey(other.fingerprint()) for name, other in folders.items()}
    files = read_image_files(job)
    check_drawn(job, {path: photo.shape[0] * photo.shape[1] for path, photo in files.photos.items()})
    digests = {**files.digests, **{name: key.digest for name, key in model_keys.items()}}
    means = meaning(job, digests)
    drawn = [(mask_meaning(mask, digests), mask_size(job, mask.field)) for mask in job.drawn_masks()]
    pictures = [means.get("start"), means.get("protect")]
    mask_means = [FORMAT, job.composition, drawn, pictures, job.width, job.height, facts.vae_scale_factor]
    inputs = _inputs(job, files, facts.vae_scale_factor)
    prepared = Prepared(
        job=job,
        job_hash=content_hash(means),
        mask_hash=content_hash(mask_means),
        model_keys=model_keys,
        digests=digests,
        folders=folders,
        inputs=inputs,
        of_images=image_warnings(job, files.photos),
        run=composed(job, folders, inputs, empty_latent(job, folders[job.model])),
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


def canvas_of(job: RenderJob) -> Canvas:
    """What a model's noise levels may depend on."""
    return Canvas(job.width, job.height)


def empty_latent(job: RenderJob, folder: Checkpoint) -> Latent:
    """The latent [b, c, h, w] of a job that starts from noise alone."""
    facts = folder.facts
    rows, columns = job.height // facts.vae_scale_factor, job.width // facts.vae_scale_factor
    return torch.zeros(job.pictures, facts.latent_channels, rows, columns)


def composed(
    job: RenderJob, folders: Mapping[str, Checkpoint], inputs: Mapping[str, Tensor], clean: Latent
) -> SamplingRun[Any]:
    """The run of a job, from what was made of its images and the latent that it starts with."""
    masks = [inputs[f"{i}"] for i in range(len(job.drawn_masks()))]
    protected = inputs.get("protected")
    lattice = None if protected is None else to_lattice(protected, folders[job.model].facts.vae_scale_factor)
    levels = {name: folder.noise_schedule(canvas_of(job)) for name, folder in folders.items()}
    return compose(job, levels, clean, masks, lattice)
