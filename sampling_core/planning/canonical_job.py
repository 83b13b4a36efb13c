"""The content hash of a job: same meaning, same hash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.job.comfyui_node import (
    MaskGridNKSamplersAdvanced,
    RegionalSampler,
    RegionalSamplerAdvanced,
    TwoSamplersForMask,
)
from prefect_regional_diffusion.sampling_core.job.mask_shapes import MaskShape
from prefect_regional_diffusion.sampling_core.job.render_job import DrawnMask, Region, RenderJob
from prefect_regional_diffusion.sampling_core.masks.rasterize import reach_of
from prefect_regional_diffusion.sampling_core.schedules import is_whole
from prefect_regional_diffusion.sampling_core.solvers import CFG_PP, SOLVERS

INERT: dict[type[BaseModel], set[str]] = {Region: {"name"}}
"""Fields that change no picture, by model. Every other field is hashed, as it stands unless it is resolved below."""
_RESOLVED = {
    *("regions", "base_only_steps", "denoise", "sampler", "cfg", "negative_prompt", "node", "batch_size"),
    *("batch_index", "overlap", "noise", "start_image", "start_fit", "protect"),
}
_RESOLVED_OF_REGIONS = {
    *("mask", "grow", "feather", "sampler", "cfg", "negative_prompt", "model", "scheduler", "sigma_factor", "weight"),
    *("variation_seed", "variation_strength", "variation_method", "start_at_step", "end_at_step"),
}


def meaning(job: RenderJob, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the job draws, with everything inherited filled in and everything without effect left out.

    `digests` gives the SHA-256 of each mask file and of the model's weights by the path that the job
    names, so that the same bytes mean the same wherever they lie.
    """
    digests = digests or {}
    means = job.model_dump(mode="json", exclude=_RESOLVED) | _asked_of(job, None)
    means["model"] = digests.get(job.model, job.model)
    means["base_only_steps"] = job.first_steps if job.regions else 0
    means["denoise"] = _rounded(job.denoise)
    means["pictures"] = list(job.batch_index) or job.batch_size
    if job.start_image is not None:
        means["start"] = [digests.get(job.start_image, job.start_image), job.start_fit]
        means["protect"] = [shape_meaning(shape, digests) for shape in job.protect]
    if len(job.regions) > 1 and job.overlap != "weight":
        means["overlap"] = job.overlap
    if job.noise != "keyed" and any(SOLVERS[job.settings_of(region)[0]].order == 0 for region in (None, *job.regions)):
        means["noise"] = job.noise
    means["regions"] = [_region(job, region, digests) for region in job.regions]
    if job.composition == "sequential":
        means["node"] = _node(job, digests)
    return means


def _region(job: RenderJob, region: Region, digests: Mapping[str, str]) -> dict[str, Any]:
    means = region.model_dump(mode="json", exclude=INERT[Region] | _RESOLVED_OF_REGIONS) | _asked_of(job, region)
    means["mask"] = mask_meaning(DrawnMask("mask", region.mask, region.grow, region.feather), digests)
    model = region.model or job.model
    means["model"] = digests.get(model, model)
    if region.variation_strength > 0:
        means["variation"] = [region.variation_seed, region.variation_strength, region.variation_method]
    if job.composition == "sequential":
        return means | {"scheduler": region.scheduler or job.scheduler, "sigma_factor": region.sigma_factor}
    weighs = len(job.regions) > 1 and job.overlap == "weight"
    window = [job.first_steps if region.start_at_step is None else region.start_at_step, region.end_at_step]
    # Weight 0 lies under the other regions, whatever the rule among those.
    weight = region.weight if weighs else float(region.weight > 0 or len(job.regions) == 1)
    return means | {"weight": weight, "steps": window}


def _node(job: RenderJob, digests: Mapping[str, str]) -> dict[str, Any]:
    node = job.node
    means = node.model_dump(mode="json")
    match node:
        case MaskGridNKSamplersAdvanced(tile=tile):
            means["tile"] = shape_meaning(tile, digests)
        case TwoSamplersForMask():
            means["mask_seed"] = job.seed if node.mask_seed is None else node.mask_seed
            means["mask_steps"] = node.mask_steps or job.steps
            means["mask_denoise"] = _rounded(node.mask_denoise or job.denoise)
        case RegionalSampler(seed_2nd_mode="ignore"):
            del means["seed_2nd"]
        case RegionalSamplerAdvanced(end_at_step=end):
            means["end_at_step"] = min(end, job.steps)
        case _:
            pass
    return means


def _rounded(denoise: float) -> float:
    return 1.0 if is_whole(denoise) else denoise


def mask_meaning(mask: DrawnMask, digests: Mapping[str, str]) -> list[Any]:
    """What a mask is drawn from: its shape, and in pixels how far it grows and how far its edge fades."""
    return [shape_meaning(mask.shape, digests), mask.grow, reach_of(mask.feather)]


def shape_meaning(shape: MaskShape, digests: Mapping[str, str]) -> dict[str, Any]:
    """A shape with the content of its file in the place of the file's path."""
    means = shape.model_dump(mode="json")
    for name in ("image", "color_map"):
        if name in means:
            means[name] = digests.get(means[name], means[name])
    return means


def _asked_of(job: RenderJob, region: Region | None) -> dict[str, Any]:
    sampler, cfg, negative = job.settings_of(region)
    if job.composition == "joint":
        # ComfyUI's names for where the noise is drawn. The Impact Pack treats some of them in another way.
        sampler = sampler.removesuffix("_gpu")
    # With guidance off, the negative prompt is evaluated for CFG++ alone.
    unused = math.isclose(cfg, 1.0) and sampler not in CFG_PP
    return {"sampler": sampler, "cfg": cfg, "negative_prompt": "" if unused else negative}


def job_hash(job: RenderJob, digests: Mapping[str, str] | None = None) -> str:
    """SHA-256 of the job's meaning, as hex."""
    return content_hash(meaning(job, digests))
