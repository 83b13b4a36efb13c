"""The refiner of Stable Diffusion XL: a UNet for the last noise levels, and the second of its text encoders alone.

It takes an aesthetic score in the place of the canvas' size (Podell et al. 2023, section 2.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from prefect_regional_diffusion.sampling_core.models.beta_scheduler import read_beta_levels
from prefect_regional_diffusion.sampling_core.models.beta_unet_folder import check_widths
from prefect_regional_diffusion.sampling_core.models.clip_pair_encoder import CLIPPairEncoder
from prefect_regional_diffusion.sampling_core.models.clip_text import CLIP_TEXT_WITH_PROJECTION
from prefect_regional_diffusion.sampling_core.models.conditioning import TIME_IDS, Conditioning
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import (
    CLIP_TOKENIZER,
    INDEX,
    SCHEDULER,
    SCHEDULER_FILES,
    Library,
    ModelIndex,
    check_classes,
)
from prefect_regional_diffusion.sampling_core.models.families.stable_diffusion_xl import (
    VAE,
    StableDiffusionXL,
    check_additions,
)
from prefect_regional_diffusion.sampling_core.models.family import Facts, Part, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import CLIP_TOKENIZER_FILES
from prefect_regional_diffusion.sampling_core.models.tokens import open_tokenizer
from prefect_regional_diffusion.sampling_core.models.unet_config import UNET

PIPELINE = "StableDiffusionXLImg2ImgPipeline"
_NUMBERS = 5
"""Numbers in `time_ids`."""


class Index(ModelIndex):
    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": PIPELINE, "requires_aesthetics_score": True}
    # A watermark is not laid over our pictures; the first text encoder is null.
    NOTES: ClassVar[frozenset[str]] = ModelIndex.NOTES | {"add_watermarker", "text_encoder", "tokenizer"}

    unet: Library
    vae: Library
    text_encoder_2: Library
    tokenizer_2: Library
    feature_extractor: Library | None = None
    image_encoder: Library | None = None
    force_zeros_for_empty_prompt: bool = True
    requires_aesthetics_score: bool = False


@dataclass(frozen=True)
class StableDiffusionXLRefiner(StableDiffusionXL):
    """A checked model folder, whose only text encoder is the second one."""

    PARTS: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        "text_encoder": ("text_encoder_2",),
        "denoiser": ("unet",),
        "autoencoder": ("vae",),
    }
    READ: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": (INDEX,),
        "scheduler": SCHEDULER_FILES,
        "tokenizer_2": CLIP_TOKENIZER_FILES,
    }

    @property
    def facts(self) -> Facts:
        return replace(
            super().facts,
            family="the refiner of Stable Diffusion XL",
            refiner=True,
            takes_loras=False,
            takes_prompt_maps=True,
            takes_controls=False,
            takes_image_prompts=False,
            embedding_widths={"clip_g": self.second_width},
        )

    def size_tensors(self, sizes: SizeConditioning) -> Conditioning:
        """`time_ids` [1, 5]: height and width of the original in pixels, top and left of its crop, aesthetic score."""
        score = 0.0 if sizes.aesthetic_score is None else sizes.aesthetic_score
        time_ids = [sizes.original.height, sizes.original.width, sizes.crop_top, sizes.crop_left, score]
        return Conditioning({TIME_IDS: torch.tensor([time_ids], dtype=torch.float32)})

    def load_text_encoder(self, placement: Placement) -> CLIPPairEncoder:
        """Read the weights of the text encoder. Raises ModelError."""
        return CLIPPairEncoder((self.load("text_encoder_2", placement), self.tokenizers[0]))


def open_stable_diffusion_xl_refiner(path: Path, files: ModelFiles) -> StableDiffusionXLRefiner:
    """Check a diffusers folder: its index, its configurations, and the headers of its weights. Raises ModelError."""
    index = Index.read(files, INDEX)
    classes = {
        "unet": UNET.known_as,
        "vae": VAE.known_as,
        "text_encoder_2": CLIP_TEXT_WITH_PROJECTION.known_as,
        "tokenizer_2": CLIP_TOKENIZER,
        "scheduler": SCHEDULER,
    }
    check_classes(index, files, classes)
    unet, vae = UNET.read(files, "unet"), VAE.read(files, "vae")
    encoder = CLIP_TEXT_WITH_PROJECTION.read(files, "text_encoder_2")
    check_widths(files, unet, vae, [encoder.hidden_size])
    check_additions(files, unet, encoder, _NUMBERS)
    networks = {
        "unet": UNET.source(files, "unet", unet),
        "vae": VAE.source(files, "vae", vae),
        "text_encoder_2": CLIP_TEXT_WITH_PROJECTION.source(files, "text_encoder_2", encoder),
    }
    positions = encoder.max_position_embeddings
    return StableDiffusionXLRefiner(
        path=path,
        files=files,
        networks=networks,
        unet=unet,
        vae=vae,
        tokenizers=(open_tokenizer(files, "tokenizer_2", "text_encoder_2", positions, encoder.vocab_size),),
        levels=read_beta_levels(files),
        text_width=encoder.hidden_size,
        second_width=encoder.hidden_size,
        pooled_width=encoder.projection_dim,
        zeros_for_empty=index.force_zeros_for_empty_prompt,
    )
