"""Load a model folder: one network, a prompt encoder and a decoder."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.folder import ModelFolder
from prefect_regional_diffusion.sampling_core.models.stable_diffusion import PARTS
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.sampling_core.models.weights import check_shapes, read_tensors
from prefect_regional_diffusion.sampling_core.tensors.types import Embedding, Latent, Photo, Pixels


@dataclass(frozen=True)
class Model:
    """A loaded Stable Diffusion model. `network` works in model space; latents there are scaled."""

    folder: ModelFolder
    network: UNetDenoiser
    _text_encoder: Any
    _vae: Any

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        """Of an encoded prompt: 1, tokens, features."""
        return 1, self.folder.tokenizer.length, int(self._text_encoder.config.hidden_size)

    @torch.inference_mode()
    def encode_prompts(self, prompts: Iterable[str]) -> dict[str, Embedding]:
        """Each prompt's embedding [1, tokens, features], float32 on the CPU."""
        encoded: dict[str, Embedding] = {}
        for prompt in prompts:
            tokens = torch.tensor([self.folder.tokenizer.ids(prompt)], device=self._text_encoder.device)
            encoded[prompt] = self._text_encoder(tokens)[0].float().cpu().clone()
        return encoded

    @torch.inference_mode()
    def encode_picture(self, picture: Photo) -> Latent:
        """The model-space latent [1, c, h, w] of a picture [H, W, 3]: the middle of what the encoder finds."""
        vae = self._vae
        pixels = (picture.float() / 127.5 - 1).permute(2, 0, 1)[None].to(vae.device, vae.dtype)
        return vae.encode(pixels).latent_dist.mean.float().cpu() * self.folder.scaling_factor

    @torch.inference_mode()
    def decode(self, latent: Latent) -> Pixels:
        """Pictures [b, H, W, 3], 8 bits, from model-space latents."""
        vae = self._vae
        clean = (latent / self.folder.scaling_factor).to(vae.device, vae.dtype)
        pictures = vae.decode(clean, return_dict=False)[0].float().cpu()
        if not bool(pictures.isfinite().all()):
            raise ModelError(
                "REGIONAL_DTYPE", str(vae.dtype), "a wider type (the picture has values that are not finite)"
            )
        return ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def load(folder: ModelFolder, device: str, dtype: torch.dtype) -> Model:
    """Load all weights. Raises ModelError if they do not load.

    The libraries build networks from checked values, and are given tensors: they read no file of the folder.
    """
    with _quiet():
        # Imported late: it takes seconds, which planning can do without.
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModel

        def text_encoder() -> Any:
            values: dict[str, Any] = folder.text_encoder.model_dump() | {"attn_implementation": "sdpa"}
            return CLIPTextModel(CLIPTextConfig(**values))

        unet = _filled(folder, "unet", lambda: UNet2DConditionModel(**folder.unet.model_dump()), device, dtype)
        vae = _filled(folder, "vae", lambda: AutoencoderKL(**folder.vae.model_dump()), device, dtype)
        encoder = _filled(folder, "text_encoder", text_encoder, device, dtype)
    return Model(folder, UNetDenoiser(unet, folder.levels), encoder, vae)


def _filled(folder: ModelFolder, part: str, build: Callable[[], Any], device: str, dtype: torch.dtype) -> Any:
    """A network with its weights. Its tensors are compared with those of the files before any of them has memory."""
    spelled, weights = PARTS[part][1].spelled, folder.weights[part]
    try:
        with torch.device("meta"):
            network = build()
        names = {spelled(name): name for name in network.state_dict()}
        shapes = {spelled(name): tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        check_shapes(folder.files, part, weights, shapes)
        tensors = read_tensors(folder.files, weights, shapes, device, dtype)
        network.load_state_dict({names[name]: tensor for name, tensor in tensors.items()}, assign=True)
        for name, buffer in list(network.named_buffers()):
            # In no file: the numbers of the positions.
            if buffer.is_meta and name.endswith("position_ids"):
                owner = network.get_submodule(name.rpartition(".")[0])
                owner.position_ids = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
        return network.to(device).eval()
    except ModelError:
        raise
    except Exception as error:  # whatever the libraries raise: it is the folder that does not load
        reason = " ".join(str(error).split())[:200]
        raise folder.files.refusal(f"a folder whose weights load ({part}: {reason})") from error


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
