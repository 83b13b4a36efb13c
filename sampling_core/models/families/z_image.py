"""Z-Image: a flow transformer that reads Qwen3, with FLUX.1's autoencoder.

A job's `cfg` is what it is for other families: diffusers counts Z-Image's `guidance_scale` from 0, so it is one less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn.functional import pad

from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS, PROMPT_LENGTH, Conditioning
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import (
    INDEX,
    SCHEDULER_FILES,
    Library,
    ModelIndex,
    check_classes,
)
from prefect_regional_diffusion.sampling_core.models.family import Defaults, Facts, Part, Reading
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.flow_scheduler import FLOW_SCHEDULER, read_flow_scheduler
from prefect_regional_diffusion.sampling_core.models.flow_transformer_folder import (
    FLOW_VAE,
    FlowTransformerFolder,
    check_fit,
)
from prefect_regional_diffusion.sampling_core.models.lora_file import Lora
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.qwen3_text import QWEN3_TEXT, qwen3_states
from prefect_regional_diffusion.sampling_core.models.qwen_tokenizer import (
    QWEN_TOKENIZER,
    QWEN_TOKENIZER_FILES,
    QwenPromptTokenizer,
    open_qwen_tokenizer,
)
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights
from prefect_regional_diffusion.sampling_core.models.textual_inversion import NO_EMBEDDINGS, Embeddings
from prefect_regional_diffusion.sampling_core.models.z_image_transformer import (
    PATCH,
    Z_IMAGE_TRANSFORMER,
    ZImageDenoiser,
    ZImageTransformer2DModel,
    z_image_layers,
)
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec

PIPELINE = "ZImagePipeline"
_MOST_TOKENS = 512
"""Tokens of the longest prompt, with what the chat template puts around it."""
_TRAINED_PIXELS = 1024
_SHARED_LAYERS = ("all_x_embedder.", "cap_embedder.")
"""Layers whose input has no axis of rows, so that rows cannot have LoRAs of their own there."""


class Index(ModelIndex):
    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": PIPELINE}

    transformer: Library
    vae: Library
    text_encoder: Library
    tokenizer: Library


_CLASSES = {
    "transformer": Z_IMAGE_TRANSFORMER.known_as,
    "vae": FLOW_VAE.known_as,
    "text_encoder": QWEN3_TEXT.known_as,
    "tokenizer": QWEN_TOKENIZER,
    "scheduler": FLOW_SCHEDULER,
}


@dataclass(frozen=True)
class ZImage(FlowTransformerFolder):
    """A checked model folder."""

    PARTS: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        "text_encoder": ("text_encoder",),
        "denoiser": ("transformer",),
        "autoencoder": ("vae",),
    }
    READ: ClassVar[Mapping[str, tuple[str, ...]]] = {"scheduler": SCHEDULER_FILES, "tokenizer": QWEN_TOKENIZER_FILES}

    transformer: ZImageTransformer2DModel
    tokenizer: QwenPromptTokenizer

    @property
    def facts(self) -> Facts:
        return Facts(
            family="Z-Image",
            latent_channels=self.transformer.in_channels,
            vae_scale_factor=self.vae.vae_scale_factor,
            pixel_multiple=self.pixel_multiple,
            latent_affine=self.vae.latent_affine,
            prediction_type="flow",
            prompt_tokens=self.tokenizer.most,
            trained_pixels=_TRAINED_PIXELS,
            # Of Turbo, which was distilled; nothing in a folder tells it from the model that it came of.
            defaults=Defaults(_TRAINED_PIXELS, _TRAINED_PIXELS, 8, 1.0, "euler", "simple"),
            takes_loras=True,
            most_pixels=min(self.transformer.axes_lens[1:]) * self.pixel_multiple,
        )

    @property
    def conditioning_specs(self) -> dict[str, TensorSpec]:
        """`prompt_embeds` [1, tokens, features], and in `prompt_length` [1] how many of the tokens are the prompt's."""
        shape = (1, self.tokenizer.length, self.transformer.cap_feat_dim)
        return {PROMPT_EMBEDS: TensorSpec(torch.float32, shape), PROMPT_LENGTH: TensorSpec(torch.int64, (1,))}

    def reading(self, prompt: str) -> Reading:
        """How much of a prompt Qwen3 reads."""
        return self.tokenizer.reading(prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        """None: its tokens are made of bytes, so every word is known as well as another."""
        return []

    def first_layers(self) -> Weights:
        """Tongyi's layers."""
        return z_image_layers(self.networks["transformer"].weights)

    def open_lora(self, files: ModelFiles) -> Lora:
        """Compare a LoRA's header with the weights of this model. Raises ModelError."""
        lora = super().open_lora(files)
        (layers,) = lora.denoiser
        shared = [layer for layer in layers if layer.startswith(_SHARED_LAYERS)]
        if shared:
            raise files.error(f"acts on a layer that reads the tokens of all rows as one ({shared[0]})")
        return lora

    def load_text_encoder(self, placement: Placement) -> ZImageTextEncoder:
        """Read Qwen3's weights. Raises ModelError."""
        return ZImageTextEncoder(self.load("text_encoder", placement), self.tokenizer)

    def load_denoiser(self, placement: Placement) -> ZImageDenoiser:
        """Read the transformer's weights. Raises ModelError."""
        return ZImageDenoiser(self.load("transformer", placement))


class ZImageTextEncoder:
    """Qwen3, loaded, with its tokenizer."""

    def __init__(self, encoder: Any, tokenizer: QwenPromptTokenizer) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def encode(
        self,
        prompt: str | None,
        syntax: PromptSyntax = "plain",
        embeddings: Embeddings = NO_EMBEDDINGS,
        loras: Sequence[LoraLayers] = (),
    ) -> Conditioning:
        """`prompt_embeds` filled up with zeros to one length for all prompts, so that they share a forward.

        `loras` is what is added to the one encoder.
        """
        states = qwen3_states(self._encoder, self._tokenizer, prompt or "", loras)
        tokens = states.shape[1]
        return Conditioning(
            {
                PROMPT_EMBEDS: pad(states, (0, 0, 0, self._tokenizer.length - tokens)).clone(),
                PROMPT_LENGTH: torch.tensor([tokens]),
            }
        )


def open_z_image(path: Path, files: ModelFiles) -> ZImage:
    """Check a diffusers folder: its index, its configurations, and the headers of its weights. Raises ModelError."""
    check_classes(Index.read(files, INDEX), files, _CLASSES)
    transformer, vae = Z_IMAGE_TRANSFORMER.read(files, "transformer"), FLOW_VAE.read(files, "vae")
    encoder = QWEN3_TEXT.read(files, "text_encoder")
    check_fit(files, "latent channels", {"vae": vae.latent_channels, "transformer": transformer.in_channels})
    token_widths = {"text_encoder": encoder.hidden_size, "transformer": transformer.cap_feat_dim}
    check_fit(files, "features of a token", token_widths)
    networks = {
        "transformer": Z_IMAGE_TRANSFORMER.source(files, "transformer", transformer),
        "vae": FLOW_VAE.source(files, "vae", vae),
        "text_encoder": QWEN3_TEXT.source(files, "text_encoder", encoder),
    }
    length = min(_MOST_TOKENS, transformer.most_tokens)
    return ZImage(
        path=path,
        files=files,
        networks=networks,
        vae=vae,
        scheduler=read_flow_scheduler(files),
        patch=PATCH,
        width=transformer.dim,
        transformer=transformer,
        tokenizer=open_qwen_tokenizer(files, "tokenizer", "text_encoder", length, encoder.vocab_size),
    )
