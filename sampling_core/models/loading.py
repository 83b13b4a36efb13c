"""Load a model folder: one network, a prompt encoder and a decoder."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from sampling_core._types import Embedding, Latent, Photo, Pixels
from sampling_core.errors import ModelError
from sampling_core.models.folder import PARTS_WITH_WEIGHTS, ModelFolder
from sampling_core.models.unet import UNetDenoiser


@dataclass(frozen=True)
class Model:
    """A loaded Stable Diffusion model. `network` works in model space; latents there are scaled."""

    folder: ModelFolder
    network: UNetDenoiser
    _pipeline: Any

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        """Of an encoded prompt: 1, tokens, features."""
        encoder = self._pipeline.text_encoder.config
        # A tokenizer that does not know its limit names one of 10^30.
        tokens = min(self._pipeline.tokenizer.model_max_length, encoder.max_position_embeddings)
        return 1, int(tokens), int(encoder.hidden_size)

    @torch.inference_mode()
    def encode_prompts(self, prompts: Iterable[str]) -> dict[str, Embedding]:
        """Each prompt's embedding [1, tokens, features], float32 on the CPU."""
        encoded: dict[str, Embedding] = {}
        # `plan` and `render` say what is too long, with the field's name.
        with _quiet():
            for prompt in prompts:
                words, _ = self._pipeline.encode_prompt(
                    prompt, self._pipeline.device, 1, do_classifier_free_guidance=False
                )
                encoded[prompt] = words.float().cpu().clone()
        return encoded

    @torch.inference_mode()
    def encode_picture(self, picture: Photo) -> Latent:
        """The model-space latent [1, c, h, w] of a picture [H, W, 3]: the middle of what the encoder finds."""
        vae = self._pipeline.vae
        pixels = (picture.float() / 127.5 - 1).permute(2, 0, 1)[None].to(vae.device, vae.dtype)
        return vae.encode(pixels).latent_dist.mean.float().cpu() * self.folder.scaling_factor

    @torch.inference_mode()
    def decode(self, latent: Latent) -> Pixels:
        """Pictures [b, H, W, 3], 8 bits, from model-space latents."""
        vae = self._pipeline.vae
        clean = (latent / self.folder.scaling_factor).to(vae.device, vae.dtype)
        pictures = vae.decode(clean, return_dict=False)[0].float().cpu()
        if not bool(pictures.isfinite().all()):
            raise ModelError(
                "REGIONAL_DTYPE", str(vae.dtype), "a wider type (the picture has values that are not finite)"
            )
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
                # Left out, so that the class that the index names is not even looked up. A pipeline may be named
                # as a scheduler, and that one's weights would be loaded whatever they are.
                scheduler=None,
                safety_checker=None,
                image_encoder=None,
                feature_extractor=None,
                requires_safety_checker=False,
            ).to(device)
        except Exception as error:  # whatever the libraries raise: it is the folder that does not load
            reason = " ".join(str(error).split())[:200]
            raise ModelError("model", str(folder.path), f"a folder whose weights load ({reason})") from error
    _check_weights(folder, pipeline)
    return Model(folder, UNetDenoiser(pipeline.unet, folder.levels), pipeline)


_OLD_ATTENTION_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Autoencoders of the first Stable Diffusion releases; diffusers renames them when it loads."""


def _check_weights(folder: ModelFolder, pipeline: Any) -> None:
    """The libraries fill weights that a file lacks with random numbers, and only warn. Raises ModelError instead."""
    for part in PARTS_WITH_WEIGHTS:
        stored: set[str] = set()
        for file in folder.weight_files:
            if file.parent.name == part:
                with safe_open(file, framework="pt") as tensors:
                    stored |= set(tensors.keys())
        for old, new in _OLD_ATTENTION_NAMES.items():
            stored = {name.replace(old, new) for name in stored}
        # The library's class may have dropped or gained a prefix since the file was written.
        bare = {name.removeprefix("text_model.") for name in stored}
        wanted = {name.removeprefix("text_model.") for name, _ in getattr(pipeline, part).named_parameters()}
        missing = sorted(wanted - bare)
        if missing:
            allowed = f"complete weights ({part} lacks {missing[0]} and {len(missing) - 1} more)"
            raise ModelError("model", str(folder.path), allowed)


class _Quiet:
    """The blocks that are quiet now, of all threads, and how loud the libraries were before the first of them."""

    lock = threading.Lock()
    blocks = 0
    before: tuple[int, int] = (0, 0)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """The libraries' loading bars, advice and warnings would tear our own output apart, and repeat whole prompts.

    Their verbosity is the process': of threads that load and encode at once, the last one to leave restores it.
    """
    loggers = (diffusers_logging, transformers_logging)
    with _Quiet.lock:
        if _Quiet.blocks == 0:
            _Quiet.before = (diffusers_logging.get_verbosity(), transformers_logging.get_verbosity())
            for library in loggers:
                library.set_verbosity_error()
                library.disable_progress_bar()
        _Quiet.blocks += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.blocks -= 1
            if _Quiet.blocks == 0:
                for library, verbosity in zip(loggers, _Quiet.before, strict=True):
                    library.set_verbosity(verbosity)
                    library.enable_progress_bar()
