"""Single files with a flow transformer: Stable Diffusion 3 and FLUX.1, and what no shape says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_regional_diffusion.sampling_core.models.families import flux, stable_diffusion_3
from prefect_regional_diffusion.sampling_core.models.single_file import clip, flux_dit, ldm_vae, mmdit, t5
from prefect_regional_diffusion.sampling_core.models.single_file.layout import Configurations, Layout, Parts
from prefect_regional_diffusion.sampling_core.models.single_file.tensors import Tensors

_CLIP_L = "text_encoders.clip_l.transformer."
_CLIP_G = "text_encoders.clip_g.transformer."
_T5 = "text_encoders.t5xxl.transformer."
_EDGE = 1024
"""Of the pictures that they were trained on, in pixels."""


def _common(file: Tensors, scaling: float, shift: float, scheduler: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Configurations of an autoencoder with a shift, and of a scheduler."""
    vae = {**ldm_vae.vae_configuration(file), "scaling_factor": scaling, "shift_factor": shift, "sample_size": _EDGE}
    return {"vae/config.json": vae, "scheduler/scheduler_config.json": scheduler}


def _sd3_weights(file: Tensors) -> Parts:
    parts = {
        "transformer": mmdit.mmdit_weights(file),
        "vae": ldm_vae.vae_weights(file),
        "text_encoder": clip.projected_clip_weights(file, _CLIP_L),
        "text_encoder_2": clip.projected_clip_weights(file, _CLIP_G),
        "text_encoder_3": t5.t5_weights(file, _T5),
    }
    return {folder: weights for folder, weights in parts.items() if weights}


def _sd3_configurations(file: Tensors, parts: Parts) -> Configurations:
    configurations = _common(file, 1.5305, 0.0609, {"shift": 3.0})
    levels = len(configurations["vae/config.json"]["block_out_channels"])
    configurations["transformer/config.json"] = {
        **mmdit.mmdit_configuration(file),
        "sample_size": _EDGE >> max(0, levels - 1),
    }
    configurations["text_encoder/config.json"] = clip.clip_configuration(parts["text_encoder"], "quick_gelu")
    configurations["text_encoder_2/config.json"] = clip.clip_configuration(parts["text_encoder_2"], "gelu")
    if "text_encoder_3" in parts:
        configurations["text_encoder_3/config.json"] = t5.t5_configuration(parts["text_encoder_3"])
    return configurations


def _flux_weights(file: Tensors) -> Parts:
    return {
        "transformer": flux_dit.flux_weights(file),
        "vae": ldm_vae.vae_weights(file),
        "text_encoder": clip.clip_weights(file, _CLIP_L),
        "text_encoder_2": t5.t5_weights(file, _T5),
    }


def _flux_configurations(file: Tensors, parts: Parts) -> Configurations:
    dev = {"shift": 3.0, "use_dynamic_shifting": True}
    configurations = _common(file, 0.3611, 0.1159, dev if flux_dit.has_guidance_input(file) else {"shift": 1.0})
    configurations["transformer/config.json"] = flux_dit.flux_configuration(file)
    configurations["text_encoder/config.json"] = clip.clip_configuration(parts["text_encoder"], "quick_gelu")
    configurations["text_encoder_2/config.json"] = t5.t5_configuration(parts["text_encoder_2"])
    return configurations


def _tokenizer_of(encoder: str, folder: str, parts: Parts) -> Mapping[str, str]:
    if encoder not in parts:
        return {}
    reason = "T5's tokenizer is no part of this package, and of no such file (the model's folder has it)"
    return {f"{folder}/tokenizer.json": reason}


_CLASSES = {
    "transformer": "SD3Transformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": "T5EncoderModel",
    "tokenizer": "CLIPTokenizer",
    "tokenizer_2": "CLIPTokenizer",
    "tokenizer_3": "T5TokenizerFast",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}

SD3 = Layout(
    stable_diffusion_3.PIPELINE,
    "Stable Diffusion 3",
    {
        "a denoiser": mmdit.FIRST,
        "an autoencoder": ldm_vae.PREFIX,
        "a text encoder": _CLIP_L,
        "a second text encoder": _CLIP_G,
    },
    _sd3_weights,
    _sd3_configurations,
    {"tokenizer": Layout.PADS_WITH_END, "tokenizer_2": Layout.PADS_WITH_NULL},
    _CLASSES,
    may_have=(_T5,),
    t5_tokenizer="tokenizer_3",
    files_beside=lambda parts: _tokenizer_of("text_encoder_3", "tokenizer_3", parts),
)
FLUX = Layout(
    flux.PIPELINE,
    "FLUX.1",
    {
        "a denoiser": flux_dit.FIRST,
        "an autoencoder": ldm_vae.PREFIX,
        "a text encoder": _CLIP_L,
        "T5's encoder": _T5,
    },
    _flux_weights,
    _flux_configurations,
    {"tokenizer": Layout.PADS_WITH_END},
    {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "T5TokenizerFast",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    },
    t5_tokenizer="tokenizer_2",
    files_beside=lambda parts: _tokenizer_of("text_encoder_2", "tokenizer_2", parts),
)
