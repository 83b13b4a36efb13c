"""Load a model folder: one network, a prompt encoder and a decoder."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from sampling_core._types import Embedding, Latent, Pixels
from sampling_core.errors import ModelError
from sampling_core.models.folder import ModelFolder
from sampling_core.models.unet import UNetDenoiser


@dataclass(frozen=True)
class Model:
    """A loaded Stable Diffusion model. `network` works in model space; latents there are scaled."""

    folder: ModelFolder
    network: UNetDenoiser
    _pipeline: Any

    @torch.inference_mode()
    def encode_prompts(self, prompts: Iterable[str]) -> dict[str, Embedding]:
        """Each prompt's embedding [1, tokens, features], float32 on the CPU."""
        encoded: dict[str, Embedding] = {}
        for prompt in prompts:
            words, _ = self._pipeline.encode_prompt(prompt, self._pipeline.device, 1, do_classifier_free_guidance=False)
            encoded[prompt] = words.float().cpu().clone()
        return encoded

    @torch.inference_mode()
    def decode(self, latent: Latent) -> Pixels:
        """Pictures [b, H, W, 3], 8 bits, from model-space latents."""
        vae = self._pipeline.vae
        clean = (latent / self.folder.scaling_factor).to(vae.device, vae.dtype)
        pictures = vae.decode(clean, return_dict=False)[0].float().cpu()
        return ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def load(folder: ModelFolder, device: str, dtype: torch.dtype) -> Model:
    """Load all weights (safetensors only, no network access). Raises ModelError if they do not load."""
    with _quiet():
        # Imported late, because importing it already complains of torchvision, which nothing here needs.
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                str(folder.path),
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            ).to(device)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError("model", str(folder.path), f"a folder whose weights load ({reason})") from error
    return Model(folder, UNetDenoiser(pipeline.unet, folder.levels), pipeline)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """The libraries' loading bars and advice would tear our own output apart."""
    loggers = (diffusers_logging, transformers_logging)
    before = [library.get_verbosity() for library in loggers]
    for library in loggers:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(loggers, before, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar()
