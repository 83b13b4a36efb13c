"""The affine map between the latents of an autoencoder and those of a denoiser (model space)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prefect_regional_diffusion.sampling_core.tensors.types import Latent


@dataclass(frozen=True)
class LatentAffine:
    """From an autoencoder's latents to model space: `model = (autoencoder - shift) * scale`.

    One number for all channels, or one for each.
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...] = (0.0,)

    def __str__(self) -> str:
        scale, shift = (" ".join(f"{value:g}" for value in values) for values in (self.scale, self.shift))
        return f"scale {scale}, shift {shift}"

    def to_model(self, latent: Latent) -> Latent:
        """A latent [b, c, h, w] of the autoencoder, in model space."""
        centered = latent - _by_channel(self.shift, latent) if any(self.shift) else latent
        return centered * _by_channel(self.scale, latent)

    def to_autoencoder(self, latent: Latent) -> Latent:
        """A latent [b, c, h, w] in model space, as one of the autoencoder."""
        scaled = latent / _by_channel(self.scale, latent)
        return scaled + _by_channel(self.shift, latent) if any(self.shift) else scaled


def _by_channel(values: tuple[float, ...], latent: Latent) -> float | torch.Tensor:
    if len(values) == 1:
        return values[0]
    return torch.tensor(values, dtype=latent.dtype, device=latent.device)[:, None, None]
