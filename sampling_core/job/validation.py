"""Which fields of a job go together with its composition; others are refused, never ignored."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.job.comfyui_node import (
    DEFAULT_NODE,
    MaskGridNKSamplersAdvanced,
    RegionalSampler,
    RegionalSamplerAdvanced,
    TwoSamplersForMask,
    tiles_of,
)
from prefect_regional_diffusion.sampling_core.job.fields import validation_error
from prefect_regional_diffusion.sampling_core.job.resolved import base_only_steps
from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields, Region
from prefect_regional_diffusion.sampling_core.names import CHOOSE_THEIR_STEPS, PromptSyntax
from prefect_regional_diffusion.sampling_core.text.prompt_spans import PromptError
from prefect_regional_diffusion.sampling_core.text.prompt_syntax import parse_prompt

LONGEST_SCHEDULE = 1000
"""Levels that models are trained on; a longer schedule would name some of them twice."""

SEQUENTIAL_ONLY = ("node",)
SEQUENTIAL_ONLY_OF_REGIONS = ("scheduler", "sigma_factor")
JOINT_ONLY = ("overlap", "window", "arrangement", "noise", "protect", "refiner")
JOINT_ONLY_OF_REGIONS = ("weight", "start_at_step", "end_at_step", "window")
"""Fields of a job and of its regions that sequential composition does not use, and those that no other does."""
OF_ROWS = ("sampler", "cfg", "model", "loras", "controls", "image_prompts", "window")
"""Fields of a region that need a row of its own, which attention composition does not have."""
_REGIONS = {
    "RegionalSampler": (1, 64, "1 or more regions"),
    "RegionalSamplerAdvanced": (1, 64, "1 or more regions"),
    "TwoSamplersForMask": (1, 1, "1 region: the one under the mask"),
    "TwoAdvancedSamplersForMask": (1, 1, "1 region: the one under the mask"),
    "MaskGridNKSamplersAdvanced": (0, 0, "no regions: what is drawn is node.tile"),
}


def check_composition(job: JobFields) -> None:
    """Raises the error of a field that the job's composition does not use, or whose value it does not allow."""
    if job.init_image is None and job.init_fit != _default(job, "init_fit"):
        raise validation_error("init_fit", job.init_fit, "left out where there is no init_image")
    for i, control in enumerate(job.controls):
        if control.place == "region":
            raise validation_error(f"controls.{i}.place", "region", "canvas; a region's own controls lie on its mask")
    if job.composition == "sequential":
        _check_sequential(job)
    else:
        _check_joint(job)
    if job.composition == "attention":
        _check_attention(job)


def check_prompts(job: JobFields) -> None:
    """Raises the error of a prompt that cannot be read in the job's dialect."""
    prompts: dict[str, object] = {"prompt": job.prompt, "negative_prompt": job.negative_prompt}
    prompts |= _region_values(job, "prompt") | _region_values(job, "negative_prompt")
    for field, prompt in prompts.items():
        if isinstance(prompt, str):
            check_prompt(field, prompt, job.prompt_syntax)


def check_prompt(field: str, prompt: str, syntax: PromptSyntax) -> None:
    """Raises the error of one prompt that cannot be read in a dialect."""
    try:
        parse_prompt(prompt, syntax)
    except PromptError as error:
        raise validation_error(field, prompt, f"{error}, with prompt_syntax: {syntax}") from None


def _check_joint(job: JobFields) -> None:
    if job.node != DEFAULT_NODE:
        raise validation_error("node", job.node.name, f"left out with {job.composition} composition")
    for field, sampler in {"sampler": job.sampler, **_region_values(job, "sampler")}.items():
        if sampler in CHOOSE_THEIR_STEPS:
            raise validation_error(
                field, sampler, f"a sampler that takes the given steps, with {job.composition} composition"
            )
    for name in SEQUENTIAL_ONLY_OF_REGIONS:
        for field, value in _region_values(job, name).items():
            if value != _default(job.regions[0], name):
                raise validation_error(field, value, f"left out with {job.composition} composition")

    for i, region in enumerate(job.regions):
        first, last = region.start_at_step, region.end_at_step
        base_only = base_only_steps(job)
        bound = f"start_at_step ({first})" if first is not None else f"the base-only steps ({base_only})"
        if last is not None and last <= (base_only if first is None else first):
            raise validation_error(f"regions.{i}.end_at_step", last, f"more than {bound}")
    if job.protect and job.init_image is None:
        raise validation_error("protect", f"{len(job.protect)} masks", "left out where there is no init_image")


def _check_attention(job: JobFields) -> None:
    if job.window != _default(job, "window"):
        allowed = "canvas: all regions share one row; composition: joint has windows"
        raise validation_error("window", _written(job, "window"), allowed)
    if job.arrangement != _default(job, "arrangement"):
        raise validation_error("arrangement", job.arrangement, "left out with attention composition: all share one row")
    for i, region in enumerate(job.regions):
        for name in OF_ROWS:
            if getattr(region, name) is not None:
                allowed = "left out: all regions share one row, with the job's; composition: joint gives each its own"
                raise validation_error(f"regions.{i}.{name}", _written(region, name), allowed)


def _check_sequential(job: JobFields) -> None:
    node = job.node
    least, most, allowed = _REGIONS[node.name]
    if not least <= len(job.regions) <= most:
        raise validation_error("regions", f"{len(job.regions)} regions", f"{allowed} with {node.name}")
    for name in JOINT_ONLY:
        if getattr(job, name) != type(job).model_fields[name].default:
            raise validation_error(name, _written(job, name), "left out with sequential composition")
    for name in JOINT_ONLY_OF_REGIONS:
        for field, value in _region_values(job, name).items():
            if value != _default(job.regions[0], name):
                raise validation_error(
                    field, value, "left out with sequential composition: regions go one after the other"
                )
    if job.base_only_steps and not isinstance(node, RegionalSampler):
        raise validation_error("base_only_steps", job.base_only_steps, f"left out: {node.name} has no base-only steps")
    if job.denoise < 1 and isinstance(node, RegionalSamplerAdvanced):
        raise validation_error("denoise", job.denoise, f"1: {node.name} has node.start_at_step in its place")
    varies = isinstance(node, RegionalSamplerAdvanced) or (isinstance(node, RegionalSampler) and node.vary_noise)
    for field, strength in _region_values(job, "variation_strength").items():
        if strength and not varies:
            raise validation_error(
                field, strength, "0, or RegionalSamplerAdvanced, or RegionalSampler with node.vary_noise"
            )
    if "sigma_factor" not in type(node).model_fields:
        for field, factor in _region_values(job, "sigma_factor").items():
            if factor != 1:
                raise validation_error(field, factor, f"left out: {node.name} has no such parameter")
    if isinstance(node, TwoSamplersForMask):
        check_schedule("node.mask_denoise", node.mask_steps or job.steps, node.mask_denoise or job.denoise)
    _check_range(job)


def check_schedule(field: str, steps: int, denoise: float) -> None:
    """Raise the error of `denoise`, the last part of a schedule, where the whole one would be too long."""
    if steps > denoise * LONGEST_SCHEDULE:
        least = f"{steps / LONGEST_SCHEDULE:g} or more with {steps} steps"
        raise validation_error(field, denoise, f"{least} (a schedule of at most {LONGEST_SCHEDULE})")


def _check_range(job: JobFields) -> None:
    node = job.node
    if isinstance(node, RegionalSamplerAdvanced | MaskGridNKSamplersAdvanced):
        if node.start_at_step >= job.steps:
            raise validation_error("node.start_at_step", node.start_at_step, f"0 to {job.steps - 1} (less than steps)")
        if node.end_at_step <= node.start_at_step:
            raise validation_error(
                "node.end_at_step", node.end_at_step, f"more than start_at_step ({node.start_at_step})"
            )
    rows, columns = tiles_of(node)
    for name, parts, side, pixels in (("rows", rows, "height", job.height), ("columns", columns, "width", job.width)):
        # Another model's size is known, and checked, once it is opened.
        is_unset = job.model != "embedded" and side not in job.model_fields_set
        if pixels % parts and not is_unset:
            raise validation_error(f"node.{name}", parts, f"a number that divides the {side}, {pixels} pixels")


def _region_values(job: JobFields, name: str) -> dict[str, object]:
    return {f"regions.{i}.{name}": getattr(region, name) for i, region in enumerate(job.regions)}


def _written(part: Region | JobFields, name: str) -> object:
    """A field as somebody wrote it, and not as Python shows a model."""
    return part.model_dump(mode="json", include={name}, exclude_unset=True)[name]


def _default(part: Region | JobFields, name: str) -> object:
    return type(part).model_fields[name].default
