"""Stable Diffusion 1 and 2: a UNet, CLIP's text encoder, and a KL autoencoder of latents that are scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, get_args

import torch

from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.autoencoder_kl_config import (
    AUTOENCODER_KL,
    WITHOUT_MEAN,
    WITHOUT_SHIFT,
    AutoencoderKL,
)
from prefect_regional_diffusion.sampling_core.models.beta_scheduler import read_beta_levels
from prefect_regional_diffusion.sampling_core.models.beta_unet_folder import BetaUNetFolder, check_widths
from prefect_regional_diffusion.sampling_core.models.clip_encoder import CLIPTextEncoder
from prefect_regional_diffusion.sampling_core.models.clip_text import CLIP_TEXT
from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import (
    CLIP_TOKENIZER,
    INDEX,
    SCHEDULER,
    SCHEDULER_FILES,
    Library,
    ModelIndex,
    check_classes,
)
from prefect_regional_diffusion.sampling_core.models.family import Defaults, Facts, Part
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import CLIP_TOKENIZER_FILES
from prefect_regional_diffusion.sampling_core.models.tokens import open_tokenizer
from prefect_regional_diffusion.sampling_core.models.unet_config import UNET, WITHOUT_ADDITIONS, UNet2DConditionModel
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec

PIPELINE = "StableDiffusionPipeline"


class Index(ModelIndex):
    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": PIPELINE}
    NOTES: ClassVar[frozenset[str]] = ModelIndex.NOTES | {"requires_safety_checker"}

    unet: Library
    vae: Library
    text_encoder: Library
    tokenizer: Library
    safety_checker: Library | None = None
    feature_extractor: Library | None = None
    image_encoder: Library | None = None


class UNet(UNet2DConditionModel):
    ONLY: ClassVar[Mapping[str, object]] = {**UNet2DConditionModel.ONLY, **WITHOUT_ADDITIONS}


class VAE(AutoencoderKL):
    ONLY: ClassVar[Mapping[str, object]] = {**AutoencoderKL.ONLY, **WITHOUT_MEAN, **WITHOUT_SHIFT}


_UNET = replace(UNET, configuration=UNet)
_VAE = replace(AUTOENCODER_KL, configuration=VAE)


@dataclass(frozen=True)
class StableDiffusion(BetaUNetFolder):
    """A checked model folder; `text_width` is the number of features of a token."""

    PARTS: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        "text_encoder": ("text_encoder",),
        "denoiser": ("unet",),
        "autoencoder": ("vae",),
    }
    READ: ClassVar[Mapping[str, tuple[str, ...]]] = {"scheduler": SCHEDULER_FILES, "tokenizer": CLIP_TOKENIZER_FILES}

    text_width: int

    @property
    def facts(self) -> Facts:
        edge = self.unet.sample_size * self.vae.vae_scale_factor
        return Facts(
            family="Stable Diffusion",
            latent_channels=self.unet.in_channels,
            vae_scale_factor=self.vae.vae_scale_factor,
            pixel_multiple=self.vae.vae_scale_factor,
            latent_affine=self.vae.latent_affine,
            prediction_type=self.levels.prediction,
            prompt_tokens=self.tokenizers[0].most,
            trained_pixels=edge,
            # The embedded model was trained on captions that say all there is to see.
            defaults=Defaults(edge, edge, 20, 1.5 if self.path == EMBEDDED else 7.5, "dpmpp_2m", "karras"),
            prompt_syntaxes=get_args(PromptSyntax),
            partial=self.partial_canvas(edge),
            takes_loras=True,
            takes_controls=True,
            takes_image_prompts=True,
            takes_prompt_maps=True,
            embedding_widths={"clip_l": self.text_width},
            repeatable=frozenset({PROMPT_EMBEDS}),
        )

    @property
    def conditioning_specs(self) -> dict[str, TensorSpec]:
        """`prompt_embeds` [1, tokens, features]."""
        return {PROMPT_EMBEDS: TensorSpec(torch.float32, (1, self.tokenizers[0].length, self.text_width))}

    def load_text_encoder(self, placement: Placement) -> CLIPTextEncoder:
        """Read the text encoder's weights. Raises ModelError."""
        return CLIPTextEncoder(self.load("text_encoder", placement), self.tokenizers[0])


def open_stable_diffusion(path: Path, files: ModelFiles) -> StableDiffusion:
    """Check a diffusers folder: its index, its configurations, and the headers of its weights. Raises ModelError."""
    index = Index.read(files, INDEX)
    check_classes(
        index,
        files,
        {
            "unet": _UNET.known_as,
            "vae": _VAE.known_as,
            "text_encoder": CLIP_TEXT.known_as,
            "tokenizer": CLIP_TOKENIZER,
            "scheduler": SCHEDULER,
        },
    )
    unet, vae = _UNET.read(files, "unet"), _VAE.read(files, "vae")
    text_encoder = CLIP_TEXT.read(files, "text_encoder")
    check_widths(files, unet, vae, [text_encoder.hidden_size])
    networks = {
        "unet": _UNET.source(files, "unet", unet),
        "vae": _VAE.source(files, "vae", vae),
        "text_encoder": CLIP_TEXT.source(files, "text_encoder", text_encoder),
    }
    positions, embeddings = text_encoder.max_position_embeddings, text_encoder.vocab_size
    return StableDiffusion(
        path=path,
        files=files,
        networks=networks,
        unet=unet,
        vae=vae,
        tokenizers=(open_tokenizer(files, "tokenizer", "text_encoder", positions, embeddings),),
        levels=read_beta_levels(files),
        text_width=text_encoder.hidden_size,
    )
