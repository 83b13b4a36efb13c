"""Stable Diffusion XL: a UNet that also takes the picture's size, and two text encoders of CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, get_args

import torch

from prefect_regional_diffusion.sampling_core.models.autoencoder_kl_config import (
    AUTOENCODER_KL,
    WITHOUT_SHIFT,
    AutoencoderKL,
)
from prefect_regional_diffusion.sampling_core.models.beta_scheduler import read_beta_levels
from prefect_regional_diffusion.sampling_core.models.beta_unet_folder import BetaUNetFolder, check_widths
from prefect_regional_diffusion.sampling_core.models.clip_pair_encoder import CLIPPairEncoder
from prefect_regional_diffusion.sampling_core.models.clip_text import (
    CLIP_TEXT,
    CLIP_TEXT_WITH_PROJECTION,
    CLIPTextModelWithProjection,
)
from prefect_regional_diffusion.sampling_core.models.conditioning import (
    POOLED_PROMPT_EMBEDS,
    PROMPT_EMBEDS,
    TIME_IDS,
    Conditioning,
)
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import (
    CLIP_TOKENIZER,
    INDEX,
    SCHEDULER,
    SCHEDULER_FILES,
    Library,
    ModelIndex,
    check_classes,
)
from prefect_regional_diffusion.sampling_core.models.family import Defaults, Facts, Part, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import CLIP_TOKENIZER_FILES
from prefect_regional_diffusion.sampling_core.models.tokens import open_tokenizer
from prefect_regional_diffusion.sampling_core.models.unet_config import UNET, UNet2DConditionModel
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec

PIPELINE = "StableDiffusionXLPipeline"
_SIZES = 6
"""Numbers in `time_ids`."""


class Index(ModelIndex):
    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": PIPELINE}
    # A watermark is not laid over our pictures.
    NOTES: ClassVar[frozenset[str]] = ModelIndex.NOTES | {"add_watermarker"}

    unet: Library
    vae: Library
    text_encoder: Library
    text_encoder_2: Library
    tokenizer: Library
    tokenizer_2: Library
    feature_extractor: Library | None = None
    image_encoder: Library | None = None
    force_zeros_for_empty_prompt: bool = True


class VAEConfiguration(AutoencoderKL):
    ONLY: ClassVar[Mapping[str, object]] = {**AutoencoderKL.ONLY, **WITHOUT_SHIFT}


VAE = replace(AUTOENCODER_KL, configuration=VAEConfiguration)
"""The autoencoder: its latents are not shifted."""


@dataclass(frozen=True)
class StableDiffusionXL(BetaUNetFolder):
    """A checked model folder.

    `text_width` is the number of features of a token, of which `second_width` are the second text encoder's;
    `pooled_width` is that of a whole prompt.
    """

    PARTS: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        "text_encoder": ("text_encoder", "text_encoder_2"),
        "denoiser": ("unet",),
        "autoencoder": ("vae",),
    }
    READ: ClassVar[Mapping[str, tuple[str, ...]]] = {
        # It says what an empty negative prompt is.
        "": (INDEX,),
        "scheduler": SCHEDULER_FILES,
        "tokenizer": CLIP_TOKENIZER_FILES,
        "tokenizer_2": CLIP_TOKENIZER_FILES,
    }

    text_width: int
    second_width: int
    pooled_width: int
    zeros_for_empty: bool

    @property
    def facts(self) -> Facts:
        edge = self.unet.sample_size * self.vae.vae_scale_factor
        return Facts(
            family="Stable Diffusion XL",
            latent_channels=self.unet.in_channels,
            vae_scale_factor=self.vae.vae_scale_factor,
            pixel_multiple=self.vae.vae_scale_factor,
            latent_affine=self.vae.latent_affine,
            prediction_type=self.levels.prediction,
            prompt_tokens=min(tokenizer.most for tokenizer in self.tokenizers),
            trained_pixels=edge,
            defaults=Defaults(edge, edge, 20, 5.0, "dpmpp_2m", "karras"),
            empty_negative="none" if self.zeros_for_empty else "encoded",
            size_conditioned=True,
            prompt_syntaxes=get_args(PromptSyntax),
            # Of 1024 pixels: 768. Below that, published models repeat what a prompt names once.
            partial=self.partial_canvas(edge * 3 // 4),
            takes_loras=True,
            takes_controls=True,
            takes_image_prompts=True,
            takes_prompt_maps=True,
            embedding_widths={"clip_l": self.text_width - self.second_width, "clip_g": self.second_width},
            repeatable=frozenset({PROMPT_EMBEDS}),
        )

    @property
    def conditioning_specs(self) -> dict[str, TensorSpec]:
        """`prompt_embeds` [1, tokens, features of both encoders], `pooled_prompt_embeds` [1, features]."""
        return {
            PROMPT_EMBEDS: TensorSpec(torch.float32, (1, self.tokenizers[0].length, self.text_width)),
            POOLED_PROMPT_EMBEDS: TensorSpec(torch.float32, (1, self.pooled_width)),
        }

    def size_tensors(self, sizes: SizeConditioning) -> Conditioning:
        """`time_ids` [1, 6], pixels: height and width of the original, top and left of its crop, size of the canvas."""
        original, canvas = ((size.height, size.width) for size in (sizes.original, sizes.canvas))
        time_ids = [*original, sizes.crop_top, sizes.crop_left, *canvas]
        return Conditioning({TIME_IDS: torch.tensor([time_ids], dtype=torch.float32)})

    def load_text_encoder(self, placement: Placement) -> CLIPPairEncoder:
        """Read the weights of both text encoders. Raises ModelError."""
        first, second = (self.load(folder, placement) for folder in self.PARTS["text_encoder"])
        return CLIPPairEncoder((first, self.tokenizers[0]), (second, self.tokenizers[1]))

    def placement_of(self, part: Part, placement: Placement) -> Placement:
        """The autoencoder computes in float32 if its configuration asks for that."""
        upcast = part == "autoencoder" and self.vae.force_upcast
        return replace(placement, dtype=torch.float32) if upcast else placement


def open_stable_diffusion_xl(path: Path, files: ModelFiles) -> StableDiffusionXL:
    """Check a diffusers folder: its index, its configurations, and the headers of its weights. Raises ModelError."""
    index = Index.read(files, INDEX)
    check_classes(
        index,
        files,
        {
            "unet": UNET.known_as,
            "vae": VAE.known_as,
            "text_encoder": CLIP_TEXT.known_as,
            "text_encoder_2": CLIP_TEXT_WITH_PROJECTION.known_as,
            "tokenizer": CLIP_TOKENIZER,
            "tokenizer_2": CLIP_TOKENIZER,
            "scheduler": SCHEDULER,
        },
    )
    unet, vae = UNET.read(files, "unet"), VAE.read(files, "vae")
    first = CLIP_TEXT.read(files, "text_encoder")
    second = CLIP_TEXT_WITH_PROJECTION.read(files, "text_encoder_2")
    check_widths(files, unet, vae, [first.hidden_size, second.hidden_size])
    check_additions(files, unet, second, _SIZES)
    networks = {
        "unet": UNET.source(files, "unet", unet),
        "vae": VAE.source(files, "vae", vae),
        "text_encoder": CLIP_TEXT.source(files, "text_encoder", first),
        "text_encoder_2": CLIP_TEXT_WITH_PROJECTION.source(files, "text_encoder_2", second),
    }
    tokenizers = (
        open_tokenizer(files, "tokenizer", "text_encoder", first.max_position_embeddings, first.vocab_size),
        open_tokenizer(files, "tokenizer_2", "text_encoder_2", second.max_position_embeddings, second.vocab_size),
    )
    lengths = [tokenizer.length for tokenizer in tokenizers]
    if len(set(lengths)) > 1:
        raise files.error(f"has text encoders that read different numbers of tokens ({lengths[0]} and {lengths[1]})")
    return StableDiffusionXL(
        path=path,
        files=files,
        networks=networks,
        unet=unet,
        vae=vae,
        tokenizers=tokenizers,
        levels=read_beta_levels(files),
        text_width=first.hidden_size + second.hidden_size,
        second_width=second.hidden_size,
        pooled_width=second.projection_dim,
        zeros_for_empty=index.force_zeros_for_empty_prompt,
    )


def check_additions(
    files: ModelFiles, unet: UNet2DConditionModel, second: CLIPTextModelWithProjection, numbers: int
) -> None:
    """Raise ModelError for a UNet that does not take the pooled prompt and so many numbers as inputs."""
    if unet.addition_embed_type is None or unet.addition_time_embed_dim is None:
        raise files.error("has a unet without an addition_embed_type text_time and its addition_time_embed_dim")
    inputs = numbers * unet.addition_time_embed_dim + second.projection_dim
    if unet.projection_class_embeddings_input_dim != inputs:
        raise files.error(
            f"has a unet that does not take a prompt and {numbers} sizes (projection_class_embeddings_input_dim "
            f"{unet.projection_class_embeddings_input_dim}, not {inputs})"
        )
