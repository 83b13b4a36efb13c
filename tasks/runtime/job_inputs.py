"""The inputs of a job beside its own fields: model folders, image files, masks. Jobs on one canvas share them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.guidance import PromptKey
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.job.prompt_fields import embedding_label, embeddings_of
from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.masks.mask_cache import DrawnMasks
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Checkpoint, Facts
from prefect_regional_diffusion.sampling_core.models.folder import check_alike
from prefect_regional_diffusion.sampling_core.models.lora_file import LORA_PARTS
from prefect_regional_diffusion.sampling_core.models.model_key import ModelKey
from prefect_regional_diffusion.sampling_core.models.textual_inversion import Embeddings, TextualInversion
from prefect_regional_diffusion.sampling_core.planning.canonical_job import canonical_mask, canonical_start
from prefect_regional_diffusion.sampling_core.planning.image_advice import image_warnings
from prefect_regional_diffusion.sampling_core.planning.model_fit import fit_to_models
from prefect_regional_diffusion.sampling_core.planning.region_masks import protected_pixels, region_masks
from prefect_regional_diffusion.sampling_core.planning.unencoded import prompt_specs
from prefect_regional_diffusion.sampling_core.tensors.specs import Specs
from prefect_regional_diffusion.tasks.inputs.embedding_files import EmbeddingFile, fitted, read_embedding
from prefect_regional_diffusion.tasks.inputs.image_files import ImageFiles, read_image_files, resized
from prefect_regional_diffusion.tasks.inputs.limits import check_canvas
from prefect_regional_diffusion.tasks.inputs.size_limits import check_drawn, check_latents
from prefect_regional_diffusion.tasks.machine.once import once
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.control_files import Controls, control_tensors, open_controls
from prefect_regional_diffusion.tasks.runtime.image_prompt_files import (
    ImagePrompts,
    image_prompts,
    open_image_prompt_files,
)
from prefect_regional_diffusion.tasks.runtime.lora_files import Loras, open_loras
from prefect_regional_diffusion.tasks.runtime.model_cache import open_model

FORMAT = 10
"""Part of every key: raise it when the arithmetic of masks or samplers changes, so that no older state is continued."""

OWN_BYTES = 2**16
"""Estimated bytes of a job's inputs beside their tensors: names, digests, warnings."""
LAYER_BYTES = 2**11
"""Estimated bytes of an adapter's layer: the names and shapes of its tensors."""


@dataclass(frozen=True)
class JobInputs:
    """Models, masks and pictures of a job.

    `folders` and `model_keys` are by model; `digests` are of all files that the job names, weights among them, by
    path. `tensors` has the masks `0`, `1`, ...; of an init image, `picture` in canvas pixels, and what is `protected`;
    and what controls read, by `control_name`. `mask_hash` stands for them. `embeddings` are the textual inversions that
    prompts name, by model; `loras` and `controls` are by model and path. `warnings` are of the images.
    """

    folders: dict[str, Checkpoint]
    model_keys: dict[str, ModelKey]
    digests: dict[str, str]
    loras: Loras
    controls: Controls
    image_prompts: ImagePrompts
    tensors: dict[str, Tensor]
    mask_hash: str
    warnings: list[str]
    embeddings: Mapping[str, Embeddings]

    @property
    def embedding_digests(self) -> dict[str, str]:
        """SHA-256 of the files of textual inversions, by the names that prompts have for them."""
        names = {name for embeddings in self.embeddings.values() for name in embeddings}
        return {name: self.digests[embedding_label(name)] for name in sorted(names)}

    def prompt_specs(self, prompt: PromptKey) -> Specs:
        """Names, types and shapes of an encoded prompt of one of the models."""
        return prompt_specs(prompt, self.folders[prompt.model], self.embeddings[prompt.model])

    @property
    def facts(self) -> dict[str, Facts]:
        """What is known of the models, by model."""
        return {name: folder.facts for name, folder in self.folders.items()}

    @property
    def bytes(self) -> int:
        """Bytes of the tensors, and an upper bound for all else that other inputs of the same models do not share."""
        vectors = [
            vector
            for embeddings in self.embeddings.values()
            for embedding in embeddings.values()
            for vector in embedding.vectors
        ]
        layers = sum(lora.layers(part) for lora in self.loras.values() for part in LORA_PARTS)
        layers += sum(len(adapter.plan.layers) for adapter in self.image_prompts.files.adapters.values())
        tensors = sum(tensor.nbytes for tensor in (*self.tensors.values(), *vectors))
        return OWN_BYTES + LAYER_BYTES * layers + tensors + self.image_prompts.bytes


@once
def drawn_masks() -> DrawnMasks:
    """A cache of the masks that this process has drawn: the cells of a grid have the same ones."""
    return DrawnMasks(settings().max_tensor_bytes)


def inputs_key(job: ResolvedJob) -> Hashable:
    """The fields that determine a job's inputs. Jobs with equal keys have the same ones, as long as no file changes."""
    # Whether several models have the same noise levels may depend on the steps.
    canvas = (job.composition, job.width, job.height, job.steps if len(job.models) > 1 else None)
    files = (job.init_image, job.init_fit, tuple(job.models_by_field.items()), embeddings_of(job))
    adapters = (job.lora_uses, job.control_uses, job.control_pictures, job.image_prompt_uses)
    return (canvas, job.masks, job.protect, *files, *adapters)


def read_inputs(job: ResolvedJob) -> JobInputs:
    """Look at the models, adapters and image files of a job, and draw its masks. Raises RegionalError."""
    folders: dict[str, Checkpoint] = {}
    for field, name in job.models_by_field.items():
        if name not in folders:
            folders[name] = open_model(name, field)
    check_alike(job.models_by_field, folders, canvas_of(job), job.steps)
    fit_to_models(job, {name: folder.facts for name, folder in folders.items()})
    loras, controls = open_loras(job, folders), open_controls(job, folders)
    prompts = open_image_prompt_files(job, folders)
    facts = folders[job.base.model].facts
    cell = facts.vae_scale_factor
    check_canvas(job, facts.pixel_multiple, facts.most_pixels)
    # Before anything large is read.
    check_latents(job, cell, facts.latent_channels)
    model_keys = {name: ModelKey(other.fingerprint()) for name, other in folders.items()}
    files = read_image_files(job)
    check_drawn(job, {path: photo.shape[0] * photo.shape[1] for path, photo in files.photos.items()})
    embeddings, embedding_digests = _read_embeddings(job, folders)
    digests = {**files.digests, **{name: key.digest for name, key in model_keys.items()}, **embedding_digests}
    adapters = (*loras.items(), *controls.items(), *prompts.adapters.items())
    digests |= {path: file.fingerprint() for (_, path), file in adapters}
    digests |= {path: encoder.fingerprint() for path, encoder in prompts.encoders.items()}
    masks = [(canonical_mask(mask, digests), mask.size) for mask in job.masks]
    start = canonical_start(job, digests)
    control_pictures = control_tensors(job, files.photos, digests)
    pictures = [start.get("start"), start.get("protect"), *([sorted(control_pictures)] if control_pictures else [])]
    return JobInputs(
        folders=folders,
        model_keys=model_keys,
        digests=digests,
        loras=loras,
        controls=controls,
        image_prompts=image_prompts(job, folders, prompts, files.photos, digests),
        tensors=_tensors(job, files, cell) | control_pictures,
        mask_hash=content_hash([FORMAT, job.composition, masks, pictures, job.width, job.height, cell]),
        warnings=image_warnings(job, files.photos),
        embeddings=embeddings,
    )


def canvas_of(job: ResolvedJob) -> Canvas:
    """The job's canvas, which a model's noise levels may depend on."""
    return Canvas(job.width, job.height)


def _read_embeddings(
    job: ResolvedJob, folders: Mapping[str, Checkpoint]
) -> tuple[Mapping[str, Embeddings], dict[str, str]]:
    """The textual inversions that the job's prompts name, by model; and the SHA-256 of each file, by its label."""
    files: dict[str, EmbeddingFile] = {}
    embeddings: dict[str, dict[str, TextualInversion]] = {model: {} for model in job.models}
    for field, model, name in embeddings_of(job):
        if name not in files:
            files[name] = read_embedding(field, name)
        embeddings[model][name] = fitted(field, name, files[name], folders[model].facts.embedding_widths)
    return embeddings, {embedding_label(name): file.digest for name, file in files.items()}


def _tensors(job: ResolvedJob, files: ImageFiles, cell: int) -> dict[str, Tensor]:
    photos = files.photos
    masks = region_masks(job, photos, cell, files.digests, drawn_masks())
    tensors: dict[str, Tensor] = {f"{i}": mask for i, mask in enumerate(masks)}
    if job.init_image is not None:
        tensors["picture"] = resized(photos[job.init_image], (job.height, job.width), job.init_fit)
        protected = protected_pixels(job, photos)
        if protected is not None:
            tensors["protected"] = protected
    return tensors
