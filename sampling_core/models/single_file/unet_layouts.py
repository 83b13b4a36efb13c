"""Single files with a UNet: Stable Diffusion 1, 2 and XL, and what published ones have where no shape says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_regional_diffusion.sampling_core.models.families import stable_diffusion, stable_diffusion_xl
from prefect_regional_diffusion.sampling_core.models.single_file import clip, ldm_unet, ldm_vae
from prefect_regional_diffusion.sampling_core.models.single_file.layout import Configurations, Layout, Parts
from prefect_regional_diffusion.sampling_core.models.single_file.tensors import Tensors, num_blocks

_HEAD_WIDTH = 64
"""Channels of a head of attention, in UNets since Stable Diffusion 2."""
_TIME_IDS = 6
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_FIRST_CLIP = "conditioner.embedders.0.transformer."
_SECOND_CLIP = "conditioner.embedders.1.model."


def _scheduler(file: Tensors) -> dict[str, Any]:
    """As trained, with the two marks that files of models that predict v have."""
    return {
        **_BETAS,
        "prediction_type": "v_prediction" if "v_pred" in file else "epsilon",
        "rescale_betas_zero_snr": "v_pred" in file and "ztsnr" in file,
    }


def _common(file: Tensors, edge: int, scaling: float, heads: int | None) -> dict[str, dict[str, Any]]:
    """Configurations of a UNet, an autoencoder and a scheduler for pictures of an edge of so many pixels."""
    unet, vae = ldm_unet.unet_configuration(file), ldm_vae.vae_configuration(file)
    unet["attention_head_dim"] = heads or [max(1, width // _HEAD_WIDTH) for width in unet["block_out_channels"]]
    unet["sample_size"] = edge >> max(0, len(vae["block_out_channels"]) - 1)
    return {
        "unet/config.json": unet,
        "vae/config.json": {**vae, "scaling_factor": scaling, "sample_size": edge},
        "scheduler/scheduler_config.json": _scheduler(file),
    }


def _sd1_weights(file: Tensors) -> Parts:
    return {
        "unet": ldm_unet.unet_weights(file),
        "vae": ldm_vae.vae_weights(file),
        "text_encoder": clip.clip_weights(file, "cond_stage_model.transformer."),
    }


def _sd1_configurations(file: Tensors, weights: Parts) -> Configurations:
    text = clip.clip_configuration(weights["text_encoder"], "quick_gelu")
    # What diffusers calls the width of a head is their number.
    return _common(file, 512, 0.18215, 8) | {"text_encoder/config.json": text}


def _sd2_weights(file: Tensors) -> Parts:
    prefix = "cond_stage_model.model."
    blocks = num_blocks(file, f"{prefix}transformer.resblocks.")
    # OpenCLIP's ViT-H has 24 blocks, and the last one is not used.
    layers = 23 if blocks == 24 else blocks
    return {
        "unet": ldm_unet.unet_weights(file),
        "vae": ldm_vae.vae_weights(file),
        "text_encoder": clip.open_clip_weights(file, prefix, layers, projected=False),
    }


def _sd2_configurations(file: Tensors, weights: Parts) -> Configurations:
    text = clip.clip_configuration(weights["text_encoder"], "gelu")
    return _common(file, 768, 0.18215, None) | {"text_encoder/config.json": text}


def _prediction(parts: Parts) -> Mapping[str, str]:
    return {
        "scheduler/scheduler_config.json": "it says whether the prediction_type of this model is epsilon or "
        "v_prediction, which the weights do not"
    }


def _sdxl_weights(file: Tensors) -> Parts:
    return {
        "unet": ldm_unet.unet_weights(file),
        "vae": ldm_vae.vae_weights(file),
        "text_encoder": clip.clip_weights(file, _FIRST_CLIP),
        "text_encoder_2": clip.open_clip_weights(file, _SECOND_CLIP, projected=True),
    }


def _sdxl_configurations(file: Tensors, weights: Parts) -> Configurations:
    first = clip.clip_configuration(weights["text_encoder"], "quick_gelu")
    second = clip.clip_configuration(weights["text_encoder_2"], "gelu")
    configurations = _common(file, 1024, 0.13025, None)
    unet = configurations["unet/config.json"]
    time_id_features = unet.get("projection_class_embeddings_input_dim", 0) - second.get("projection_dim", 0)
    unet["addition_time_embed_dim"] = max(1, time_id_features // _TIME_IDS)
    return configurations | {"text_encoder/config.json": first, "text_encoder_2/config.json": second}


_NETWORK = {"a denoiser": ldm_unet.FIRST, "an autoencoder": ldm_vae.PREFIX}
_CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
    "scheduler": "EulerDiscreteScheduler",
}

SD1 = Layout(
    stable_diffusion.PIPELINE,
    "Stable Diffusion 1",
    {**_NETWORK, "a text encoder": "cond_stage_model.transformer."},
    _sd1_weights,
    _sd1_configurations,
    {"tokenizer": Layout.PADS_WITH_END},
    _CLASSES,
)
SD2 = Layout(
    stable_diffusion.PIPELINE,
    "Stable Diffusion 2",
    {**_NETWORK, "a text encoder": "cond_stage_model.model."},
    _sd2_weights,
    _sd2_configurations,
    {"tokenizer": Layout.PADS_WITH_NULL},
    _CLASSES,
    files_beside=_prediction,
)
SDXL = Layout(
    stable_diffusion_xl.PIPELINE,
    "Stable Diffusion XL",
    {**_NETWORK, "a text encoder": _FIRST_CLIP, "a second text encoder": _SECOND_CLIP},
    _sdxl_weights,
    _sdxl_configurations,
    {"tokenizer": Layout.PADS_WITH_END, "tokenizer_2": Layout.PADS_WITH_NULL},
    {**_CLASSES, "text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"},
)
