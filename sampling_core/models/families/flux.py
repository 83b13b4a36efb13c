"""FLUX.1 dev and schnell: a flow transformer that reads T5, and a pooled embedding of CLIP's.

dev takes the guidance scale as an input, and its noise levels depend on the canvas; schnell has neither. The
transformer's `guidance_embeds` and the scheduler of a folder tell which of them it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.clip_text import CLIP_TEXT, PooledCLIPTextModel
from prefect_regional_diffusion.sampling_core.models.conditioning import (
    POOLED_PROMPT_EMBEDS,
    PROMPT_EMBEDS,
    Conditioning,
)
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import (
    CLIP_TOKENIZER,
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
from prefect_regional_diffusion.sampling_core.models.flux_transformer import (
    FLUX_TRANSFORMER,
    PATCH,
    FluxDenoiser,
    FluxTransformer2DModel,
)
from prefect_regional_diffusion.sampling_core.models.ip_adapter_file import (
    AttentionPlan,
    ImageAttention,
    IPAdapter,
    open_ip_adapter,
)
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers, apply_loras
from prefect_regional_diffusion.sampling_core.models.partial_canvas import PartialCanvas
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.single_file.flux_dit import flux_layers
from prefect_regional_diffusion.sampling_core.models.t5_text import T5_TEXT, t5_states
from prefect_regional_diffusion.sampling_core.models.t5_tokenizer import (
    T5_TOKENIZER,
    T5_TOKENIZER_FILES,
    T5PromptTokenizer,
    open_t5_tokenizer,
)
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights
from prefect_regional_diffusion.sampling_core.models.textual_inversion import NO_EMBEDDINGS, Embeddings
from prefect_regional_diffusion.sampling_core.models.tokenizer_files import CLIP_TOKENIZER_FILES
from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer, open_tokenizer
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec

PIPELINE = "FluxPipeline"
_DEV_TOKENS, _SCHNELL_TOKENS = 512, 256
"""Tokens that T5 makes of every prompt."""
_TRAINED_PIXELS = 1024
_LEAST_PIXELS = _TRAINED_PIXELS // 2
"""The model is published for 0.1 to 2 megapixels; this is a quarter of one."""


class Index(ModelIndex):
    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": PIPELINE}

    transformer: Library
    vae: Library
    text_encoder: Library
    text_encoder_2: Library
    tokenizer: Library
    tokenizer_2: Library
    feature_extractor: Library | None = None
    image_encoder: Library | None = None


_CLIP = replace(CLIP_TEXT, configuration=PooledCLIPTextModel)
_CLASSES = {
    "transformer": FLUX_TRANSFORMER.known_as,
    "vae": FLOW_VAE.known_as,
    "text_encoder": _CLIP.known_as,
    "text_encoder_2": T5_TEXT.known_as,
    "tokenizer": CLIP_TOKENIZER,
    "tokenizer_2": T5_TOKENIZER,
    "scheduler": FLOW_SCHEDULER,
}


@dataclass(frozen=True)
class Flux(FlowTransformerFolder):
    """A checked model folder; `clip` and `t5` are the tokenizers of its text encoders."""

    PARTS: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        "text_encoder": ("text_encoder", "text_encoder_2"),
        "denoiser": ("transformer",),
        "autoencoder": ("vae",),
    }
    READ: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "scheduler": SCHEDULER_FILES,
        "tokenizer": CLIP_TOKENIZER_FILES,
        "tokenizer_2": T5_TOKENIZER_FILES,
    }

    transformer: FluxTransformer2DModel
    clip: PromptTokenizer
    t5: T5PromptTokenizer

    @property
    def facts(self) -> Facts:
        is_dev = self.transformer.guidance_embeds
        return Facts(
            family="FLUX.1 dev" if is_dev else "FLUX.1 schnell",
            latent_channels=self.vae.latent_channels,
            vae_scale_factor=self.vae.vae_scale_factor,
            pixel_multiple=self.pixel_multiple,
            latent_affine=self.vae.latent_affine,
            prediction_type="flow",
            prompt_tokens=self.t5.most,
            trained_pixels=_TRAINED_PIXELS,
            defaults=Defaults(
                _TRAINED_PIXELS, _TRAINED_PIXELS, 28 if is_dev else 4, 3.5 if is_dev else 1.0, "euler", "simple"
            ),
            guidance="embedded" if is_dev else "none",
            takes_loras=True,
            takes_prompt_maps=True,
            takes_image_prompts=True,
            partial=PartialCanvas(_LEAST_PIXELS, self.pixel_multiple, one_place=True),
        )

    @property
    def conditioning_specs(self) -> dict[str, TensorSpec]:
        """`prompt_embeds` [1, tokens, features] of T5, `pooled_prompt_embeds` [1, features] of CLIP."""
        network = self.transformer
        return {
            PROMPT_EMBEDS: TensorSpec(torch.float32, (1, self.t5.length, network.joint_attention_dim)),
            POOLED_PROMPT_EMBEDS: TensorSpec(torch.float32, (1, network.pooled_projection_dim)),
        }

    def reading(self, prompt: str) -> Reading:
        """How much of a prompt T5 reads."""
        return self.t5.reading(prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt, each once, that CLIP has to spell."""
        return self.clip.unknown_words(prompt)

    def first_layers(self) -> Weights:
        """Black Forest Labs' layers."""
        return flux_layers(self.networks["transformer"].weights)

    def open_ip_adapter(self, files: ModelFiles) -> IPAdapter:
        """Compare an IP-Adapter's header with the transformer, on whose double-stream blocks it acts.

        Raises ModelError.
        """
        network = self.transformer
        layers = tuple(
            ImageAttention(f"transformer_blocks.{i}", i, network.inner_dim) for i in range(network.num_layers)
        )
        return open_ip_adapter(files, AttentionPlan(layers, network.joint_attention_dim, bias=True, kinds=("plain",)))

    def load_text_encoder(self, placement: Placement) -> FluxTextEncoder:
        """Read the weights of both text encoders. Raises ModelError."""
        clip, t5 = (self.load(folder, placement) for folder in self.PARTS["text_encoder"])
        return FluxTextEncoder((clip, self.clip), (t5, self.t5))

    def load_denoiser(self, placement: Placement) -> FluxDenoiser:
        """Read the transformer's weights. Raises ModelError."""
        return FluxDenoiser(self.load("transformer", placement))


class FluxTextEncoder:
    """The loaded text encoders, each with the tokenizer that it was trained with."""

    def __init__(self, clip: tuple[Any, PromptTokenizer], t5: tuple[Any, T5PromptTokenizer]) -> None:
        self._clip, self._clip_tokenizer = clip
        self._t5, self._t5_tokenizer = t5

    @torch.inference_mode()
    def encode(
        self,
        prompt: str | None,
        syntax: PromptSyntax = "plain",
        embeddings: Embeddings = NO_EMBEDDINGS,
        loras: Sequence[LoraLayers] = (),
    ) -> Conditioning:
        """`prompt_embeds` [1, tokens, features] and `pooled_prompt_embeds` [1, features], float32 on the CPU.

        `loras` are what is added to CLIP and to T5.
        """
        text = prompt or ""
        tokens = torch.tensor([self._clip_tokenizer.ids(text)], device=self._clip.device)
        with apply_loras(self._clip, loras[:1]):
            pooled: Tensor = self._clip(tokens).pooler_output
        tensors = {
            PROMPT_EMBEDS: t5_states(self._t5, self._t5_tokenizer, text, loras[1:]),
            POOLED_PROMPT_EMBEDS: pooled.float().cpu(),
        }
        return Conditioning({name: tensor.clone() for name, tensor in tensors.items()})


def open_flux(path: Path, files: ModelFiles) -> Flux:
    """Check a diffusers folder: its index, its configurations, and the headers of its weights. Raises ModelError."""
    check_classes(Index.read(files, INDEX), files, _CLASSES)
    transformer, vae = FLUX_TRANSFORMER.read(files, "transformer"), FLOW_VAE.read(files, "vae")
    clip, t5 = _CLIP.read(files, "text_encoder"), T5_TEXT.read(files, "text_encoder_2")
    cells = PATCH * PATCH
    latents = {
        f"{cells} x vae": cells * vae.latent_channels,
        "transformer": transformer.in_channels,
        "its end": transformer.out_channels or transformer.in_channels,
    }
    check_fit(files, "channels of a token", latents)
    pooled = {"text_encoder": clip.hidden_size, "transformer": transformer.pooled_projection_dim}
    check_fit(files, "features of a whole prompt", pooled)
    check_fit(
        files, "features of a token", {"text_encoder_2": t5.d_model, "transformer": transformer.joint_attention_dim}
    )
    networks = {
        "transformer": FLUX_TRANSFORMER.source(files, "transformer", transformer),
        "vae": FLOW_VAE.source(files, "vae", vae),
        "text_encoder": _CLIP.source(files, "text_encoder", clip),
        "text_encoder_2": T5_TEXT.source(files, "text_encoder_2", t5),
    }
    length = _DEV_TOKENS if transformer.guidance_embeds else _SCHNELL_TOKENS
    return Flux(
        path=path,
        files=files,
        networks=networks,
        vae=vae,
        scheduler=read_flow_scheduler(files),
        patch=PATCH,
        width=transformer.inner_dim,
        transformer=transformer,
        clip=open_tokenizer(files, "tokenizer", "text_encoder", clip.max_position_embeddings, clip.vocab_size),
        t5=open_t5_tokenizer(files, "tokenizer_2", "text_encoder_2", length, t5.vocab_size),
    )
