"""Loaded parts of a model for several threads: one of them at a time is in the networks.

Jobs of one process may share a network, and what is hung on it for one forward (LoRAs, weights that are widened) must
not meet another one's. On one device forwards wait for each other anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.family import Autoencoder, Denoiser, TextEncoder
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.tensors.types import Latent, Pixels, RgbImage, Rows


class GuardedTextEncoder:
    """Text encoders that encode one prompt at a time."""

    def __init__(self, inner: TextEncoder) -> None:
        self.inner, self._lock = inner, Lock()

    def encode(self, prompt: str | None, *how: Any, **named: Any) -> Conditioning:
        """As `TextEncoder.encode`."""
        with self._lock:
            return self.inner.encode(prompt, *how, **named)


class GuardedDenoiser:
    """A denoiser that answers one batch at a time."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self._lock = inner, Lock()

    def __call__(self, x: Rows, levels: Sequence[Level], conditioning: Conditioning, *how: Any, **named: Any) -> Rows:
        """As `Denoiser`."""
        with self._lock:
            return self.inner(x, levels, conditioning, *how, **named)


class GuardedAutoencoder:
    """An autoencoder that encodes or decodes one batch at a time: the preview and the finished picture ask for it."""

    def __init__(self, inner: Autoencoder) -> None:
        self.inner, self._lock = inner, Lock()

    def encode(self, picture: RgbImage) -> Latent:
        """As `Autoencoder.encode`."""
        with self._lock:
            return self.inner.encode(picture)

    def decode(self, latent: Latent) -> Pixels:
        """As `Autoencoder.decode`."""
        with self._lock:
            return self.inner.decode(latent)
