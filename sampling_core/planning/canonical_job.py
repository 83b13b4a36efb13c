"""The canonical form of a job and its content hash: jobs that draw the same have the same one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.job.comfyui_node import MaskGridNKSamplersAdvanced, RegionalSampler
from prefect_regional_diffusion.sampling_core.job.mask_shapes import MaskShape
from prefect_regional_diffusion.sampling_core.job.prompt_fields import embedding_label
from prefect_regional_diffusion.sampling_core.job.resolved import ParticipantSettings, ResolvedJob, ResolvedRegion
from prefect_regional_diffusion.sampling_core.job.resolved_controls import ControlPicture, ResolvedControl
from prefect_regional_diffusion.sampling_core.job.resolved_loras import ResolvedLora
from prefect_regional_diffusion.sampling_core.job.resolved_masks import ResolvedMask
from prefect_regional_diffusion.sampling_core.job.resolved_refiner import ResolvedRefiner
from prefect_regional_diffusion.sampling_core.job.resolved_window import ResolvedWindow
from prefect_regional_diffusion.sampling_core.job.shared_fields import Region
from prefect_regional_diffusion.sampling_core.masks.rasterize import reach_of
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS

INERT: dict[type, set[str]] = {
    Region: {"name"},
    ResolvedRegion: {"name", "inherited"},
    ResolvedMask: {"field"},
    ResolvedLora: {"field"},
    ResolvedControl: {"field"},
    ResolvedWindow: {"least_pixels", "multiple"},
    ResolvedRefiner: {"size_conditioned", "scored", "empty_negative"},
    ParticipantSettings: {"idle_negative", "embedded", "size_conditioned", "shares_rows"},
}
"""Fields that change no picture, or follow from the model, by type. Every other field of a resolved job is hashed: by
`canonical_job`, in a form of its own or else as it stands."""


def canonical_job(job: ResolvedJob, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the job draws, as JSON, with everything without effect left out.

    `digests` gives the SHA-256 of each image file and of the models' weights by the path that the job names, and that
    of textual inversions by `embedding_label`, so that the same bytes count the same wherever they lie.
    """
    digests = digests or {}
    shaped = {
        "base",
        "regions",
        "batch_size",
        "batch_index",
        "overlap",
        "arrangement",
        "noise",
        "init_image",
        "init_fit",
        "sizes",
        "refiner",
    }
    canonical = _as_they_stand(
        {field.name: getattr(job, field.name) for field in fields(job)}, {*shaped, "protect", "node"}
    )
    # The base's sigma factor is a parameter of the nodes that have it.
    canonical |= _settings(job.base, digests, {"sigma_factor"})
    canonical["pictures"] = list(job.batch_index) or job.batch_size
    canonical |= canonical_start(job, digests)
    if job.overlap != "weight":
        canonical["overlap"] = job.overlap
    if job.arrangement != "rows":
        canonical["arrangement"] = job.arrangement
    if job.noise != "per_step" and any(SOLVERS[settings.sampler].order == 0 for settings in job.participants):
        canonical["noise"] = job.noise
    if job.sizes is not None:
        canonical["sizes"] = list(job.sizes)
    if job.refiner is not None:
        refiner = _as_they_stand(job.refiner._asdict(), INERT[ResolvedRefiner])
        canonical["refiner"] = refiner | {"model": digests.get(job.refiner.model, job.refiner.model)}
    canonical["regions"] = [_region(job, region, digests) for region in job.regions]
    if job.composition == "sequential":
        canonical["node"] = _node(job, digests)
    return canonical


def job_hash(job: ResolvedJob, digests: Mapping[str, str] | None = None) -> str:
    """SHA-256 of the job's canonical form, as hex."""
    return content_hash(canonical_job(job, digests))


def canonical_start(job: ResolvedJob, digests: Mapping[str, str]) -> dict[str, Any]:
    """What a job starts from and keeps of it; empty if it starts from noise alone."""
    if job.init_image is None:
        return {}
    start = [digests.get(job.init_image, job.init_image), job.init_fit]
    return {"start": start, "protect": [canonical_shape(mask.shape, digests) for mask in job.protect]}


def canonical_mask(mask: ResolvedMask, digests: Mapping[str, str]) -> list[Any]:
    """What a mask is drawn from: its shape, and in pixels how far it grows and how far its edge fades."""
    return [canonical_shape(mask.shape, digests), mask.grow, reach_of(mask.feather)]


def canonical_shape(shape: MaskShape, digests: Mapping[str, str]) -> dict[str, Any]:
    """A shape with the content of its file in the place of the file's path."""
    canonical = shape.model_dump(mode="json")
    for name in ("image", "color_map"):
        if name in canonical:
            canonical[name] = digests.get(canonical[name], canonical[name])
    return canonical


def _as_they_stand(values: Mapping[str, Any], shaped: Collection[str]) -> dict[str, Any]:
    """The values but for those that have a form of their own: a new field is hashed before anybody thinks of it."""
    return {name: value for name, value in values.items() if name not in shaped}


def _settings(
    settings: ParticipantSettings, digests: Mapping[str, str], unused: Collection[str] = ()
) -> dict[str, Any]:
    model = digests.get(settings.model, settings.model)
    shaped = {*unused, *INERT[ParticipantSettings], "prompt_syntax", "loras", "controls", "image_prompts"}
    canonical = _as_they_stand(settings._asdict(), shaped) | {"model": model}
    if settings.prompt_syntax != "plain":
        names = settings.embedding_names
        embeddings = {name: digests.get(embedding_label(name), name) for name in names}
        canonical["prompts_in"] = [settings.prompt_syntax, embeddings]
    if settings.loras:
        canonical["loras"] = [
            [lora.sha256 or digests.get(lora.file, lora.file), lora.strength, lora.text_strength]
            for lora in settings.loras
        ]
    if settings.controls:
        canonical["controls"] = [_control(control, digests) for control in settings.controls]
    if settings.image_prompts:
        canonical["image_prompts"] = [
            [
                *(digests.get(file, file) for file in (prompt.file, prompt.image_encoder, prompt.image)),
                *(prompt.strength, prompt.start, prompt.end),
            ]
            for prompt in settings.image_prompts
        ]
    return canonical


def _control(control: ResolvedControl, digests: Mapping[str, str]) -> list[Any]:
    network = control.network_sha256 or digests.get(control.file, control.file)
    acts = [control.strength, control.start, control.end]
    return [network, canonical_picture(control.picture, digests), *acts]


def canonical_picture(picture: ControlPicture, digests: Mapping[str, str]) -> list[Any]:
    """What a control reads: the file's content, and how and where it is laid."""
    place = picture.place and [canonical_shape(picture.place.shape, digests), picture.place.grow]
    return [digests.get(picture.path, picture.path), picture.fit, place]


def _region(job: ResolvedJob, region: ResolvedRegion, digests: Mapping[str, str]) -> dict[str, Any]:
    shaped = {"settings", "mask", "weight", "start_at_step", "end_at_step", "window"}
    variation = {"variation_seed", "variation_strength", "variation_method"}
    canonical = _as_they_stand(region._asdict(), INERT[ResolvedRegion] | shaped | variation)
    canonical["mask"] = canonical_mask(region.mask, digests)
    if region.variation_strength > 0:
        canonical["variation"] = [region.variation_seed, region.variation_strength, region.variation_method]
    if job.composition == "sequential":
        return canonical | _settings(region.settings, digests)
    if region.window is not None:
        canonical["window"] = _as_they_stand(region.window._asdict(), INERT[ResolvedWindow])
    # A region of a joint run is on the job's own schedule.
    settings = _settings(region.settings, digests, {"scheduler", "sigma_factor"})
    return canonical | settings | {"weight": region.weight, "steps": [region.start_at_step, region.end_at_step]}


def _node(job: ResolvedJob, digests: Mapping[str, str]) -> dict[str, Any]:
    canonical = job.node.model_dump(mode="json")
    match job.node:
        case MaskGridNKSamplersAdvanced(tile=tile):
            canonical["tile"] = canonical_shape(tile, digests)
        case RegionalSampler(seed_2nd_mode="ignore"):
            del canonical["seed_2nd"]
        case _:
            pass
    return canonical
