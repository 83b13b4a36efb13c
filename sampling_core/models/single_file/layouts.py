"""Single files by family: which tensors are of which folder, and what published models have where no shape says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from prefect_regional_diffusion.sampling_core.models.families import stable_diffusion, stable_diffusion_xl
from prefect_regional_diffusion.sampling_core.models.single_file import clip, ldm_unet, ldm_vae
from prefect_regional_diffusion.sampling_core.models.single_file.tensors import Tensors, numbered
from prefect_regional_diffusion.sampling_core.models.stored import Weights

_HEAD_WIDTH = 64
"""Channels of a head of attention, in UNets since Stable Diffusion 2."""
_TIME_IDS = 6
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_LIBRARY = {"tokenizer": "transformers", "text_encoder": "transformers"}
_FIRST_CLIP = "conditioner.embedders.0.transformer."
_SECOND_CLIP = "conditioner.embedders.1.model."

Configurations = Mapping[str, dict[str, Any]]
"""By file of a folder."""


@dataclass(frozen=True)
class Layout:
    """The files of one family.

    `needs` are the beginnings of the names that each part's tensors have, by what people call the part; `weights` and
    `configurations` give a folder's tensors and JSON files for those of a file. `tokenizers` are the texts that pad,
    by folder.
    """

    pipeline: str
    known_as: str
    needs: Mapping[str, str]
    weights: Callable[[Tensors], dict[str, Weights]]
    configurations: Callable[[Tensors, dict[str, Weights]], Configurations]
    tokenizers: Mapping[str, str]
    classes: Mapping[str, str]
    told_prediction: bool = True
    """Whether what the network predicts can be told from the file."""

    PADS_WITH_END: ClassVar[str] = "<|endoftext|>"
    PADS_WITH_NULL: ClassVar[str] = "!"

    def index(self) -> dict[str, Any]:
        """The model_index.json that a folder has."""
        named = {
            name: [_LIBRARY.get(name.removesuffix("_2"), "diffusers"), of_class]
            for name, of_class in self.classes.items()
        }
        return {"_class_name": self.pipeline, **named}


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


def _sd1_weights(file: Tensors) -> dict[str, Weights]:
    return {
        "unet": ldm_unet.unet_weights(file),
        "vae": ldm_vae.vae_weights(file),
        "text_encoder": clip.clip_weights(file, "cond_stage_model.transformer."),
    }


def _sd1_configurations(file: Tensors, weights: dict[str, Weights]) -> Configurations:
    text = clip.clip_configuration(weights["text_encoder"], "quick_gelu")
    # What diffusers calls the width of a head is their number.
    return _common(file, 512, 0.18215, 8) | {"text_encoder/config.json": text}


def _sd2_weights(file: Tensors) -> dict[str, Weights]:
    prefix = "cond_stage_model.model."
    blocks = numbered(file, f"{prefix}transformer.resblocks.")
    # OpenCLIP's ViT-H has 24 blocks, and the last one is not used.
    layers = 23 if blocks == 24 else blocks
    return {
        "unet": ldm_unet.unet_weights(file),
        "vae": ldm_vae.vae_weights(file),
        "text_encoder": clip.open_clip_weights(file, prefix, layers, projected=False),
    }


def _sd2_configurations(file: Tensors, weights: dict[str, Weights]) -> Configurations:
    text = clip.clip_configuration(weights["text_encoder"], "gelu")
    return _common(file, 768, 0.18215, None) | {"text_encoder/config.json": text}


def _sdxl_weights(file: Tensors) -> dict[str, Weights]:
    return {
        "unet": ldm_unet.unet_weights(file),
        "vae": ldm_vae.vae_weights(file),
        "text_encoder": clip.clip_weights(file, _FIRST_CLIP),
        "text_encoder_2": clip.open_clip_weights(file, _SECOND_CLIP, projected=True),
    }


def _sdxl_configurations(file: Tensors, weights: dict[str, Weights]) -> Configurations:
    first = clip.clip_configuration(weights["text_encoder"], "quick_gelu")
    second = clip.clip_configuration(weights["text_encoder_2"], "gelu")
    found = _common(file, 1024, 0.13025, None)
    unet = found["unet/config.json"]
    told = unet.get("projection_class_embeddings_input_dim", 0) - second.get("projection_dim", 0)
    unet["addition_time_embed_dim"] = max(1, told // _TIME_IDS)
    return found | {"text_encoder/config.json": first, "text_encoder_2/config.json": second}


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
    told_prediction=False,
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
