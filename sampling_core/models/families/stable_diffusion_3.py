"""Stable Diffusion 3 and 3.5: a flow transformer, two text encoders of CLIP, and T5, which a folder may leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from prefect_regional_diffusion.sampling_core.models.autoencoder_kl_config import AutoencoderKL
from prefect_regional_diffusion.sampling_core.models.clip_encoder import projected_states
from prefect_regional_diffusion.sampling_core.models.clip_text import (
    CLIP_TEXT_WITH_PROJECTION,
    CLIPTextModelWithProjection,
)
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
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers
from prefect_regional_diffusion.sampling_core.models.partial_canvas import PartialCanvas
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.sd3_transformer import (
    SD3_TRANSFORMER,
    SD3Denoiser,
    SD3Transformer2DModel,
)
from prefect_regional_diffusion.sampling_core.models.single_file.mmdit import mmdit_layers
from prefect_regional_diffusion.sampling_core.models.t5_text import T5_TEXT, T5EncoderModel, t5_states
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

PIPELINE = "StableDiffusion3Pipeline"
_T5_TOKENS = 256
"""Tokens that T5 makes of every prompt, or of which there are zeros in its place."""


class Index(ModelIndex):
    ONLY: ClassVar[Mapping[str, object]] = {"_class_name": PIPELINE}

    transformer: Library
    vae: Library
    text_encoder: Library
    text_encoder_2: Library
    text_encoder_3: Library
    tokenizer: Library
    tokenizer_2: Library
    tokenizer_3: Library
    feature_extractor: Library | None = None
    image_encoder: Library | None = None


_CLASSES = {
    "transformer": SD3_TRANSFORMER.known_as,
    "vae": FLOW_VAE.known_as,
    "text_encoder": CLIP_TEXT_WITH_PROJECTION.known_as,
    "text_encoder_2": CLIP_TEXT_WITH_PROJECTION.known_as,
    "tokenizer": CLIP_TOKENIZER,
    "tokenizer_2": CLIP_TOKENIZER,
    "scheduler": FLOW_SCHEDULER,
}
_T5_CLASSES = {"text_encoder_3": T5_TEXT.known_as, "tokenizer_3": T5_TOKENIZER}


@dataclass(frozen=True)
class StableDiffusion3(FlowTransformerFolder):
    """A checked model folder; `clip` are the tokenizers of CLIP's encoders, `t5` is that of T5, if there is one."""

    PARTS: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        "text_encoder": ("text_encoder", "text_encoder_2", "text_encoder_3"),
        "denoiser": ("transformer",),
        "autoencoder": ("vae",),
    }
    READ: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "scheduler": SCHEDULER_FILES,
        "tokenizer": CLIP_TOKENIZER_FILES,
        "tokenizer_2": CLIP_TOKENIZER_FILES,
        "tokenizer_3": T5_TOKENIZER_FILES,
    }

    transformer: SD3Transformer2DModel
    clip: tuple[PromptTokenizer, PromptTokenizer]
    t5: T5PromptTokenizer | None

    @property
    def facts(self) -> Facts:
        edge = self.transformer.sample_size * self.vae.vae_scale_factor
        return Facts(
            family="Stable Diffusion 3",
            latent_channels=self.transformer.in_channels,
            vae_scale_factor=self.vae.vae_scale_factor,
            pixel_multiple=self.pixel_multiple,
            latent_affine=self.vae.latent_affine,
            prediction_type="flow",
            prompt_tokens=self._reader.most,
            trained_pixels=edge,
            defaults=Defaults(edge, edge, 28, 4.5, "euler", "simple"),
            # Of 1024 pixels: 768, as of Stable Diffusion XL; tokens have the positions of the whole canvas.
            partial=PartialCanvas(edge * 3 // 4, self.pixel_multiple),
            takes_loras=True,
            takes_prompt_maps=True,
            most_pixels=self.transformer.pos_embed_max_size * self.pixel_multiple,
        )

    @property
    def conditioning_specs(self) -> dict[str, TensorSpec]:
        """`prompt_embeds` [1, tokens of CLIP and of T5, features], `pooled_prompt_embeds` [1, features]."""
        tokens, network = self.clip[0].length + _T5_TOKENS, self.transformer
        return {
            PROMPT_EMBEDS: TensorSpec(torch.float32, (1, tokens, network.joint_attention_dim)),
            POOLED_PROMPT_EMBEDS: TensorSpec(torch.float32, (1, network.pooled_projection_dim)),
        }

    @property
    def _reader(self) -> PromptTokenizer | T5PromptTokenizer:
        """The tokenizer of the encoder that reads the most of a prompt."""
        return self.t5 or self.clip[0]

    def reading(self, prompt: str) -> Reading:
        """How much of a prompt T5 reads, or CLIP if there is no T5."""
        return self._reader.reading(prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt, each once, that CLIP has to spell."""
        return self.clip[0].unknown_words(prompt)

    def first_layers(self) -> Weights:
        """Stability's layers."""
        return mmdit_layers(self.networks["transformer"].weights)

    def load_text_encoder(self, placement: Placement) -> StableDiffusion3TextEncoder:
        """Read the weights of all text encoders. Raises ModelError."""
        encoders = [self.load(name, placement) for name in self.PARTS["text_encoder"] if name in self.networks]
        return StableDiffusion3TextEncoder(self, encoders)

    def load_denoiser(self, placement: Placement) -> SD3Denoiser:
        """Read the transformer's weights. Raises ModelError."""
        return SD3Denoiser(self.load("transformer", placement))


class StableDiffusion3TextEncoder:
    """The loaded text encoders: CLIP's two, and T5 if the model has it."""

    def __init__(self, model: StableDiffusion3, encoders: list[Any]) -> None:
        self._tokenizers = model.clip
        self._t5_tokenizer = model.t5
        self._width = model.transformer.joint_attention_dim
        self._clip, self._t5 = encoders[:2], encoders[2:]

    @torch.inference_mode()
    def encode(
        self,
        prompt: str | None,
        syntax: PromptSyntax = "plain",
        embeddings: Embeddings = NO_EMBEDDINGS,
        loras: Sequence[LoraLayers] = (),
    ) -> Conditioning:
        """Tokens of CLIP, filled up with zeros to the width of T5's, and then those; all float32 on the CPU.

        `loras` are what is added to each of the encoders.
        """
        text = prompt or ""
        clip = [
            projected_states(encoder, tokenizer, text, loras[i : i + 1])
            for i, (encoder, tokenizer) in enumerate(zip(self._clip, self._tokenizers, strict=True))
        ]
        states, pooled = zip(*clip, strict=True)
        clip_states = torch.cat(states, dim=-1)
        tensors = {
            PROMPT_EMBEDS: torch.cat(
                [pad(clip_states, (0, self._width - clip_states.shape[-1])), self._t5_states(text, loras[2:])], dim=1
            ),
            POOLED_PROMPT_EMBEDS: torch.cat(pooled, dim=-1),
        }
        return Conditioning({name: tensor.clone() for name, tensor in tensors.items()})

    def _t5_states(self, text: str, loras: Sequence[LoraLayers]) -> Tensor:
        """T5's states [1, tokens, features]; zeros without T5."""
        if self._t5_tokenizer is None:
            return torch.zeros(1, _T5_TOKENS, self._width)
        return t5_states(self._t5[0], self._t5_tokenizer, text, loras)


def open_stable_diffusion_3(path: Path, files: ModelFiles) -> StableDiffusion3:
    """Check a diffusers folder: its index, its configurations, and the headers of its weights. Raises ModelError."""
    index = Index.read(files, INDEX)
    with_t5 = index.has("text_encoder_3")
    check_classes(index, files, _CLASSES | _T5_CLASSES if with_t5 else _CLASSES)
    transformer, vae = SD3_TRANSFORMER.read(files, "transformer"), FLOW_VAE.read(files, "vae")
    first = CLIP_TEXT_WITH_PROJECTION.read(files, "text_encoder")
    second = CLIP_TEXT_WITH_PROJECTION.read(files, "text_encoder_2")
    third = T5_TEXT.read(files, "text_encoder_3") if with_t5 else None
    _check_widths(files, transformer, vae, (first, second), third)
    networks = {
        "transformer": SD3_TRANSFORMER.source(files, "transformer", transformer),
        "vae": FLOW_VAE.source(files, "vae", vae),
        "text_encoder": CLIP_TEXT_WITH_PROJECTION.source(files, "text_encoder", first),
        "text_encoder_2": CLIP_TEXT_WITH_PROJECTION.source(files, "text_encoder_2", second),
    }
    clip = (
        open_tokenizer(files, "tokenizer", "text_encoder", first.max_position_embeddings, first.vocab_size),
        open_tokenizer(files, "tokenizer_2", "text_encoder_2", second.max_position_embeddings, second.vocab_size),
    )
    check_fit(files, "number of tokens", {"tokenizer": clip[0].length, "tokenizer_2": clip[1].length})
    t5: T5PromptTokenizer | None = None
    if third is not None:
        networks["text_encoder_3"] = T5_TEXT.source(files, "text_encoder_3", third)
        t5 = open_t5_tokenizer(files, "tokenizer_3", "text_encoder_3", _T5_TOKENS, third.vocab_size)
    return StableDiffusion3(
        path=path,
        files=files,
        networks=networks,
        vae=vae,
        scheduler=read_flow_scheduler(files),
        patch=transformer.patch_size,
        width=transformer.inner_dim,
        transformer=transformer,
        clip=clip,
        t5=t5,
    )


def _check_widths(
    files: ModelFiles,
    transformer: SD3Transformer2DModel,
    vae: AutoencoderKL,
    clip: tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection],
    t5: T5EncoderModel | None,
) -> None:
    """Raise ModelError for parts that do not fit together."""
    latents = {"vae": vae.latent_channels, "transformer": transformer.in_channels, "its end": transformer.out_channels}
    check_fit(files, "latent channels", latents)
    pooled = sum(encoder.projection_dim for encoder in clip)
    pooled_widths = {"text_encoder and text_encoder_2": pooled, "transformer": transformer.pooled_projection_dim}
    check_fit(files, "features of a whole prompt", pooled_widths)
    joint, width = transformer.joint_attention_dim, sum(encoder.hidden_size for encoder in clip)
    if t5 is not None:
        check_fit(files, "features of a token", {"text_encoder_3": t5.d_model, "transformer": joint})
    if width > joint:
        raise files.error(
            f"has a transformer not as wide as CLIP's encoders (joint_attention_dim {joint}, not {width})"
        )
