"""The family of a single file, by the names of its tensors; and what the file is, if it is no model."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.single_file import flux_dit, ldm_unet, mmdit
from prefect_regional_diffusion.sampling_core.models.single_file.flow_layouts import FLUX, SD3
from prefect_regional_diffusion.sampling_core.models.single_file.layout import Layout
from prefect_regional_diffusion.sampling_core.models.single_file.tensors import Tensors
from prefect_regional_diffusion.sampling_core.models.single_file.unet_layouts import SD1, SD2, SDXL
from prefect_regional_diffusion.sampling_core.text.plain_text import plain_value

_NO_MODELS = (
    (
        "a LoRA or another adapter",
        ("*lora_up*", "*lora_down*", "*lora_A*", "*lora_B*", "*_lora?.*", "*.hada_*", "*.lokr_*"),
    ),
    ("a ControlNet", ("control_model.*", "*controlnet_*blocks*", "*input_hint_block*", "zero_convs.*")),
    ("an IP-Adapter", ("ip_adapter.*", "image_proj.*")),
    ("a textual inversion", ("emb_params", "string_to_param*", "clip_l", "clip_g")),
    ("the refiner of Stable Diffusion XL, which draws no picture alone", ("conditioner.embedders.0.model.*",)),
    (
        "a model of another family",
        (
            *("*cap_embedder.*", "*head.modulation*", "*single_stream_modulation.*"),
            *("*distilled_guidance_layer.*", "*individual_token_refiner.*"),
        ),
    ),
    (
        "one component in diffusers' names, whose folder can be loaded",
        tuple(
            prefix + blocks for prefix in ("", ldm_unet.PREFIX) for blocks in ("down_blocks.*", "transformer_blocks.*")
        ),
    ),
    ("a text encoder alone", ("text_model.*", "encoder.block.*", "shared.weight")),
    ("an autoencoder alone", ("encoder.down.*", "decoder.up.*", "encoder.down_blocks.*")),
)
"""What a file can be, and names of tensors that only such files have. Errors name the first that fits."""

_BESIDE = (
    *("model_ema.*", "betas", "alphas_cumprod*", "sqrt_*", "log_one_minus_*", "posterior_*", "lvlb_weights", "logvar"),
    *("denoiser.sigmas", "v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.*", "epoch", "global_step"),
    *("first_stage_model.loss.*", "scale_factor", "text_encoders.*.logit_scale"),
)
"""Tensors that training leaves in files, and that no network reads."""


def recognised(tensors: Tensors, files: ModelFiles) -> Layout:
    """The layout that a file has. Raises ModelError for a file that is no whole model of a known family."""
    for known_as, patterns in _NO_MODELS:
        if _any_matches(tensors, patterns):
            raise files.error(f"is {known_as}, and no whole model")
    layout = _layout(tensors)
    if layout is None:
        first = plain_value(min(tensors, default=""))
        raise files.error(
            f"is no Stable Diffusion 1, 2, XL or 3 or FLUX.1 in its first layout (a tensor of it is {first})"
        )
    for part, prefix in layout.needs.items():
        if not any(name.startswith(prefix) for name in tensors):
            raise files.error(
                f"lacks {part}: it is a {layout.known_as} file without {prefix}* (a model card may name other files)"
            )
    prefixes = (ldm_unet.PREFIX, *layout.needs.values(), *layout.may_have)
    for name in tensors:
        if not name.startswith(prefixes) and not _any_matches([name], _BESIDE):
            raise files.error(
                f"is a {layout.known_as} file with a tensor that has no place there ({plain_value(name)})"
            )
    return layout


def _layout(tensors: Tensors) -> Layout | None:
    if any(name.startswith(flux_dit.PREFIX + flux_dit.BLOCKS) for name in tensors):
        return FLUX
    if any(name.startswith(mmdit.PREFIX + mmdit.BLOCKS) for name in tensors):
        return SD3
    if any(name.startswith("conditioner.") for name in tensors) or f"{ldm_unet.PREFIX}label_emb.0.0.weight" in tensors:
        return SDXL
    if any(name.startswith("cond_stage_model.model.") for name in tensors):
        return SD2
    if any(name.startswith((ldm_unet.PREFIX, "cond_stage_model.", "first_stage_model.")) for name in tensors):
        return SD1
    return None


def _any_matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
