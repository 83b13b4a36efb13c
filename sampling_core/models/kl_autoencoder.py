"""diffusers' AutoencoderKL between pictures and latents in model space."""

from __future__ import annotations

from typing import Any

import torch

from prefect_regional_diffusion.sampling_core.errors import ModelError
from prefect_regional_diffusion.sampling_core.models.latent_affine import LatentAffine
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Pixels, RgbImage


class KLAutoencoder:
    """A loaded autoencoder; latents outside it are in model space."""

    def __init__(self, vae: Any, affine: LatentAffine, tile: int | None = None) -> None:
        """Pictures that are longer than a `tile` of so many pixels are taken in tiles; None: never."""
        self._vae = vae
        self._affine = affine
        if tile is not None:
            vae.enable_tiling()
            vae.tile_sample_min_size = tile
            vae.tile_latent_min_size = tile // 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.inference_mode()
    def encode(self, picture: RgbImage) -> Latent:
        """The latent [1, c, h, w] of a picture [H, W, 3], 8 bits: the mean of the encoder's distribution."""
        vae = self._vae
        pixels = (picture.float() / 127.5 - 1).permute(2, 0, 1)[None].to(vae.device, vae.dtype)
        return self._affine.to_model(vae.encode(pixels).latent_dist.mean.float().cpu())

    @torch.inference_mode()
    def decode(self, latent: Latent) -> Pixels:
        """Pictures [b, H, W, 3], 8 bits, from latents [b, c, h, w]. Raises ModelError if any value is not finite."""
        vae = self._vae
        clean = self._affine.to_autoencoder(latent).to(vae.device, vae.dtype)
        pictures = vae.decode(clean, return_dict=False)[0].float().cpu()
        if not bool(pictures.isfinite().all()):
            problem = "is too narrow for this model: its picture has values that are not finite"
            raise ModelError("REGIONAL_DTYPE", str(vae.dtype), problem)
        return ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
