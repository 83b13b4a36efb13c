"""A diffusers model folder, looked at without loading weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import pairwise
from math import isfinite, prod
from pathlib import Path, PurePosixPath

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.clip_text import CLIPTextModel
from prefect_regional_diffusion.sampling_core.models.configurations import NetworkConfiguration
from prefect_regional_diffusion.sampling_core.models.files import Follow, ModelFiles, find_files
from prefect_regional_diffusion.sampling_core.models.stable_diffusion import PARTS, AutoencoderKL, ModelIndex, Scheduler
from prefect_regional_diffusion.sampling_core.models.stable_diffusion import UNet2DConditionModel as UNet
from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer, open_tokenizer
from prefect_regional_diffusion.sampling_core.models.weights import Weights, read_headers
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels, beta_levels

INDEX = "model_index.json"
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
class ModelFolder:
    """What is known of a model before its weights are read: its checked configurations, and what its files hold."""

    path: Path
    files: ModelFiles
    unet: UNet
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: PromptTokenizer
    levels: ModelLevels
    weights: Mapping[str, Weights]
    """By part."""

    @property
    def latent_channels(self) -> int:
        return self.unet.in_channels

    @property
    def cell(self) -> int:
        """Pixels per latent cell."""
        return self.vae.cell

    @property
    def scaling_factor(self) -> float:
        return self.vae.scaling_factor

    @property
    def unet_channels(self) -> int:
        """Channels of the UNet's first level."""
        return self.unet.block_out_channels[0]

    @property
    def vae_channels(self) -> int:
        """Channels of the autoencoder's first level."""
        return self.vae.block_out_channels[0]

    @property
    def trained_pixels(self) -> int:
        """Edge of the canvases that the model was trained on."""
        return self.unet.sample_size * self.cell

    @property
    def numbers(self) -> int:
        """Numbers in all weights."""
        return sum(prod(stored.shape) for part in self.weights.values() for stored in part.values())

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


def open_folder(model: str, follow: Follow = os.path.realpath) -> ModelFolder:
    """Check all files of a model folder, and read its configurations.

    `follow` gives the real path behind a link, and raises if it may not be followed. Raises ModelError for what is no
    model folder, or one that is not supported.
    """
    try:
        path = EMBEDDED if model == "embedded" else Path(model).expanduser()
        if not (path / INDEX).is_file():
            raise ModelError("model", model, "`embedded`, or a folder with model_index.json (diffusers layout)")
        return _opened(path, find_files(model, path, follow))
    except (OSError, ValueError, RuntimeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise ModelError("model", model, f"a model folder that can be read ({reason})") from error


@lru_cache(maxsize=16)
def _opened(path: Path, files: ModelFiles) -> ModelFolder:
    """The same files need not be checked twice."""
    index = ModelIndex.read(files, INDEX)
    _check_parts(index, files)
    for part in PARTS:
        if f"{part}/adapter_config.json" in files:
            raise files.refusal(f"a folder whose {part} is plain weights (no adapter)")
    unet = UNet.read(files, "unet/config.json")
    vae = AutoencoderKL.read(files, "vae/config.json")
    text_encoder = CLIPTextModel.read(files, "text_encoder/config.json")
    parts: dict[str, NetworkConfiguration] = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    _check_widths(files, unet, vae, text_encoder)
    weights = {part: read_headers(files, part, PARTS[part][0], parts[part]) for part in PARTS}
    return ModelFolder(
        path=path,
        files=files,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=open_tokenizer(files, text_encoder.max_position_embeddings, text_encoder.vocab_size),
        levels=_levels(Scheduler.read(files, "scheduler/scheduler_config.json"), files),
        weights=weights,
    )


def _check_parts(index: ModelIndex, files: ModelFiles) -> None:
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


def check_alike(models: Mapping[str, str], folders: Mapping[str, ModelFolder]) -> None:
    """Raise ModelError for a model whose latents are not of the first one's kind.

    `models` is field -> name, the job's own first; `folders` is by name.
    """
    first = folders[next(iter(models.values()))]
    for field, name in models.items():
        other = folders[name]
        for what in ("latent_channels", "cell", "scaling_factor"):
            own, wanted = getattr(other, what), getattr(first, what)
            if own != wanted:
                raise ModelError(field, f"{name} ({what} {own})", f"a model with the same latents ({what} {wanted})")
        if other.levels.sigmas != first.levels.sigmas:
            raise ModelError(field, name, "a model trained on the same noise levels as the job's own")
