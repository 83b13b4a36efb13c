"""Stable Diffusion 1 and 2: a UNet, CLIP's text encoder, and a KL autoencoder of latents that are scaled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from math import isfinite, prod
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.clip_encoder import CLIPTextEncoder
from prefect_regional_diffusion.sampling_core.models.clip_text import CLIPTextModel
from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS
from prefect_regional_diffusion.sampling_core.models.configurations import NetworkConfiguration
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Facts, LatentAffine, Part
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.kl_autoencoder import KLAutoencoder
from prefect_regional_diffusion.sampling_core.models.loading import NetworkSource, check_network, load_network
from prefect_regional_diffusion.sampling_core.models.stable_diffusion import PARTS, AutoencoderKL, ModelIndex, Scheduler
from prefect_regional_diffusion.sampling_core.models.stable_diffusion import UNet2DConditionModel as UNet
from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer, Reading, open_tokenizer
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.sampling_core.models.weights import Weights, read_headers
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels, beta_levels
from prefect_regional_diffusion.sampling_core.tensors.specs import TensorSpec

INDEX = "model_index.json"
_FOLDERS: Mapping[Part, str] = {"text_encoder": "text_encoder", "denoiser": "unet", "autoencoder": "vae"}
"""Where the weights of each part lie in a model folder."""
_CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "scheduler": ("diffusers", ("*Scheduler",)),  # any: it is read for its numbers alone, and never loaded
}
"""Library and classes of each part. An index may name any class, and code of its own: these are all we load."""
_CONFIGURATIONS = {
    **dict.fromkeys(PARTS, ("config.json",)),
    "scheduler": ("scheduler_config.json",),
    "tokenizer": (
        *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
        *("special_tokens_map.json", "added_tokens.json"),
    ),
}
"""Files of each part that are read beside its weights. Nothing reads any other."""


@dataclass(frozen=True)
class StableDiffusion:
    """A checked model folder: its configurations, and what its weight files hold."""

    path: Path
    files: ModelFiles
    unet: UNet
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: PromptTokenizer
    levels: ModelLevels
    weights: Mapping[str, Weights]
    """By folder of a part."""

    @property
    def facts(self) -> Facts:
        return Facts(
            family="Stable Diffusion",
            latent_channels=self.unet.in_channels,
            vae_scale_factor=self.vae.vae_scale_factor,
            pixel_multiple=self.vae.vae_scale_factor,
            latent_affine=LatentAffine((self.vae.scaling_factor,)),
            prediction_type=self.levels.prediction,
            prompt_tokens=self.tokenizer.most,
            trained_pixels=self.unet.sample_size * self.vae.vae_scale_factor,
        )

    @property
    def numbers(self) -> int:
        """Numbers in all weights."""
        return sum(prod(stored.shape) for part in self.weights.values() for stored in part.values())

    @property
    def conditioning_specs(self) -> dict[str, TensorSpec]:
        """`prompt_embeds` [1, tokens, features]."""
        return {PROMPT_EMBEDS: TensorSpec(torch.float32, (1, self.tokenizer.length, self.text_encoder.hidden_size))}

    def fingerprint(self) -> str:
        """SHA-256 over everything that is read: two folders with the same one draw the same pictures."""
        total = hashlib.sha256()
        for name in self._counted():
            total.update(f"{name} ".encode())
            total.update(self.files.digest(name))
        return total.hexdigest()

    def _counted(self) -> list[str]:
        """The files that determine pictures: weights and configurations, but no other variants, and no notes."""
        names = {stored.file for part in self.weights.values() for stored in part.values()}
        for part, (stem, _) in PARTS.items():
            names |= {f"{part}/{stem}.safetensors", f"{part}/{stem}.safetensors.index.json"}
        names |= {f"{part}/{name}" for part, listed in _CONFIGURATIONS.items() for name in listed}
        return sorted((name for name in names if name in self.files), key=PurePosixPath)

    def noise_schedule(self, canvas: Canvas) -> ModelLevels:
        """The levels that the betas give, whatever the canvas."""
        return self.levels

    def working_numbers(self, canvas: Canvas, rows: int) -> int:
        """A rough estimate of the larger of one forward of so many rows and the decoding of one picture.

        The embedded model keeps 14 first-level maps alive in a forward and 5.5 in the decoder (tensors
        counted while it ran). Larger models have attention and more layers on that level, so the
        factors here are higher; expect the right order of magnitude and no more.
        """
        cells = (canvas.width // self.vae.vae_scale_factor) * (canvas.height // self.vae.vae_scale_factor)
        forward = rows * cells * self.unet.block_out_channels[0] * 24
        decoding = canvas.width * canvas.height * self.vae.block_out_channels[0] * 8
        return max(forward, decoding)

    def reading(self, prompt: str) -> Reading:
        """How much of a prompt the text encoder reads."""
        return self.tokenizer.reading(prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt, each once, that are no token of their own."""
        return self.tokenizer.unknown_words(prompt)

    def check_weights(self, part: Part) -> None:
        """Raise ModelError unless the files have exactly the tensors that a part needs. Reads no tensors."""
        check_network(self._source(part))

    def load_text_encoder(self, device: str, dtype: torch.dtype) -> CLIPTextEncoder:
        """Read the text encoder's weights. Raises ModelError."""
        return CLIPTextEncoder(load_network(self._source("text_encoder"), device, dtype), self.tokenizer)

    def load_denoiser(self, device: str, dtype: torch.dtype) -> UNetDenoiser:
        """Read the UNet's weights. Raises ModelError."""
        return UNetDenoiser(load_network(self._source("denoiser"), device, dtype), self.levels)

    def load_autoencoder(self, device: str, dtype: torch.dtype) -> KLAutoencoder:
        """Read the autoencoder's weights. Raises ModelError."""
        return KLAutoencoder(load_network(self._source("autoencoder"), device, dtype), self.facts.latent_affine)

    def _source(self, part: Part) -> NetworkSource:
        build: Mapping[Part, Callable[[], Any]] = {
            "text_encoder": lambda: _clip_text_model(self.text_encoder),
            "denoiser": lambda: _unet(self.unet),
            "autoencoder": lambda: _autoencoder(self.vae),
        }
        folder = _FOLDERS[part]
        return NetworkSource(self.files, folder, self.weights[folder], PARTS[folder][1].spelled, build[part])


# The libraries are imported late: it takes seconds, which planning can do without.


def _unet(configuration: UNet) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**configuration.model_dump())


def _autoencoder(configuration: AutoencoderKL) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as Network

    return Network(**configuration.model_dump())


def _clip_text_model(configuration: CLIPTextModel) -> Any:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel as Network

    values: dict[str, Any] = configuration.model_dump() | {"attn_implementation": "sdpa"}
    return Network(CLIPTextConfig(**values))


def open_stable_diffusion(path: Path, files: ModelFiles) -> StableDiffusion:
    """Check a diffusers folder: its index, its configurations, and the headers of its weights. Raises ModelError."""
    index = ModelIndex.read(files, INDEX)
    _check_classes(index, files)
    for part in PARTS:
        if f"{part}/adapter_config.json" in files:
            raise files.refusal(f"a folder whose {part} is plain weights (no adapter)")
    unet = UNet.read(files, "unet/config.json")
    vae = AutoencoderKL.read(files, "vae/config.json")
    text_encoder = CLIPTextModel.read(files, "text_encoder/config.json")
    parts: dict[str, NetworkConfiguration] = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    _check_widths(files, unet, vae, text_encoder)
    weights = {part: read_headers(files, part, PARTS[part][0], parts[part]) for part in PARTS}
    return StableDiffusion(
        path=path,
        files=files,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=open_tokenizer(files, text_encoder.max_position_embeddings, text_encoder.vocab_size),
        levels=_levels(Scheduler.read(files, "scheduler/scheduler_config.json"), files),
        weights=weights,
    )


def _check_classes(index: ModelIndex, files: ModelFiles) -> None:
    """Raise ModelError for a part of another class than is known here, or from another library."""
    for part, (library, classes) in _CLASSES.items():
        found = getattr(index, part)
        name = found[1] or ""
        if found[0] != library or not name.isidentifier() or not any(fnmatchcase(name, known) for known in classes):
            allowed = f"{library} {' or '.join(classes)} (code that comes with a model is not run)"
            raise ModelError("model", f"{files.model} ({part} {found})", allowed)


def _check_widths(files: ModelFiles, unet: UNet, vae: AutoencoderKL, text_encoder: CLIPTextModel) -> None:
    """Raise ModelError for parts that do not fit together."""
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise files.refusal(
            f"a unet that reads and writes the latents of its vae ({unet.in_channels} and {unet.out_channels} "
            f"channels, {vae.latent_channels} in vae/config.json)"
        )
    widths = unet.cross_attention_dim if isinstance(unet.cross_attention_dim, list) else [unet.cross_attention_dim]
    if set(widths) != {text_encoder.hidden_size}:
        raise files.refusal(
            f"a unet that reads its text_encoder (cross_attention_dim {widths[0]}, "
            f"hidden_size {text_encoder.hidden_size})"
        )


def _levels(schedule: Scheduler, files: ModelFiles) -> ModelLevels:
    levels = beta_levels(
        schedule.prediction_type,
        schedule.beta_start,
        schedule.beta_end,
        schedule.num_train_timesteps,
        schedule.beta_schedule,
    )
    if not all(0 < low <= high and isfinite(high) for low, high in pairwise(levels.sigmas)):
        raise files.refusal("a scheduler whose noise levels are finite and grow (scheduler/scheduler_config.json)")
    return levels
