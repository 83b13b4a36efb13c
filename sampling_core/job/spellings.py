"""Suggestions for unknown names: near spellings, and the names that other programs use for the same things."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import get_args

from prefect_regional_diffusion.sampling_core.names import SamplerName, SchedulerName

_FIELDS = {
    "prompt": ("positive", "positive_prompt", "text", "caption"),
    "negative_prompt": ("negative", "neg", "neg_prompt"),
    "cfg": ("guidance_scale", "cfg_scale", "guidance", "true_cfg_scale"),
    "steps": ("num_inference_steps", "sampling_steps", "num_steps", "n_steps"),
    "sampler": ("sampler_name", "sampler_index", "sampling_method"),
    "scheduler": ("noise_schedule", "schedule_type", "scheduler_name"),
    "seed": ("noise_seed", "random_seed", "generator"),
    "denoise": ("strength", "denoising_strength"),
    "batch_size": ("n_iter", "num_images_per_prompt", "num_images", "batch_count", "n_samples"),
    "init_image": ("start_image", "init_images", "image"),
    "model": ("checkpoint", "ckpt_name", "sd_model_checkpoint", "pretrained_model_name_or_path"),
    "feather": ("mask_blur", "blur"),
    "grow": ("overlap_factor", "dilate", "dilation"),
    "variation_seed": ("subseed",),
    "variation_strength": ("subseed_strength",),
    "start_at_step": ("start_step", "first_step"),
    "window": ("tile", "tiles", "crop"),
    "margin": ("padding", "context", "tile_overlap", "crop_padding"),
    "end_at_step": ("end_step", "last_step"),
    "width": ("w",),
    "height": ("h",),
    "center_x": ("cx",),
    "center_y": ("cy",),
    "radius_x": ("rx",),
    "radius_y": ("ry",),
    "color": ("colour",),
    "columns": ("cols",),
    "regions": ("layers", "areas"),
    "controls": ("controlnet", "controlnets", "control_nets", "controlnet_units", "control_layers"),
    "start": ("control_guidance_start", "guidance_start", "start_percent", "start_at"),
    "end": ("control_guidance_end", "guidance_end", "end_percent", "end_at"),
    "loras": ("lora", "lora_stack", "adapters"),
    "image_prompts": ("ip_adapters", "ip_adapter", "image_prompt", "ip_adapter_image"),
    "file": ("lora_name", "path", "ipadapter_file", "adapter"),
    "strength": ("strength_model", "lora_strength", "scale", "ip_adapter_scale", "weight"),
    "image_encoder": ("clip_vision", "image_encoder_folder"),
    "text_strength": ("strength_clip", "clip_strength", "te_strength"),
}
"""Fields, and what A1111, ComfyUI, diffusers and InvokeAI call them."""

_FIELD_OF = {name: field for field, names in _FIELDS.items() for name in names}

_SAMPLERS = {
    # A1111
    "eulera": "euler_ancestral",
    "dpm2a": "dpm_2_ancestral",
    "dpmpp2sa": "dpmpp_2s_ancestral",
    # diffusers, without DiscreteScheduler and MultistepScheduler
    "kdpm2": "dpm_2",
    "kdpm2ancestral": "dpm_2_ancestral",
    "dpmsolver": "dpmpp_2m",
    "dpmsolversde": "dpmpp_sde",
}
_SCHEDULERS = {"uniform": "normal", "ays": "AYS SD1", "alignyoursteps": "AYS SD1"}


def meant_field(unknown: str, known: Sequence[str]) -> str | None:
    """The field among those known that an unknown name may stand for."""
    field = _FIELD_OF.get(_plain(unknown, keep="_"))
    return field if field in known else _near(unknown, known)


def meant_value(field: str, value: str, known: Sequence[str]) -> str | None:
    """A suggestion for a value that is not among the known ones: another one, or `field: value`, or both."""
    sampler, scheduler = _sampler_and_scheduler(value)
    if field == "sampler":
        if sampler and scheduler:
            return f"{sampler} with scheduler: {scheduler}"
        suggestion = sampler or (f"scheduler: {scheduler}" if scheduler else None)
    elif field == "scheduler":
        if sampler and scheduler:
            return f"{scheduler} with sampler: {sampler}"
        suggestion = scheduler or (f"sampler: {sampler}" if sampler else None)
    else:
        suggestion = None
    return suggestion or _near(value, known)


def _sampler_and_scheduler(text: str) -> tuple[str | None, str | None]:
    """`DPM++ 2M Karras` names both; either may be missing."""
    plain = _plain(text)
    schedulers = {_plain(name): name for name in get_args(SchedulerName)} | _SCHEDULERS
    for suffix, scheduler in schedulers.items():
        if plain == suffix:
            return None, scheduler
        if plain.endswith(suffix) and (sampler := _sampler(plain.removesuffix(suffix))):
            return sampler, scheduler
    return _sampler(plain), None


def _sampler(plain: str) -> str | None:
    samplers = {_plain(name): name for name in get_args(SamplerName)} | _SAMPLERS
    if plain.endswith("scheduler"):
        plain = plain.removesuffix("scheduler").removesuffix("discrete").removesuffix("multistep")
    return samplers.get(plain) or samplers.get(plain.removeprefix("k"))


def _near(word: str, known: Sequence[str]) -> str | None:
    """The known word that is most like this one, whatever its case, blanks and signs."""
    by_plain = {_plain(name): name for name in known}
    matches = get_close_matches(_plain(word), by_plain, n=1)
    return by_plain[matches[0]] if matches else None


def _plain(text: str, keep: str = "") -> str:
    return re.sub(rf"[^a-z0-9{keep}]", "", text.lower().replace("+", "p"))
