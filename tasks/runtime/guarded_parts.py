"""Loaded parts of a model for several threads: one thread at a time uses the networks.

Jobs of one process may share a network, and the hooks of one forward (LoRAs, weights that are widened) must not act in
another one. On one device forwards wait for each other anyway.
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

    def encode(self, prompt: str | None, *args: Any, **kwargs: Any) -> Conditioning:
        """As `TextEncoder.encode`."""
        with self._lock:
            return self.inner.encode(prompt, *args, **kwargs)


class GuardedDenoiser:
    """A denoiser that answers one batch at a time."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self._lock = inner, Lock()

    def __call__(self, x: Rows, levels: Sequence[Level], conditioning: Conditioning, *args: Any, **kwargs: Any) -> Rows:
        """As `Denoiser`."""
        with self._lock:
            return self.inner(x, levels, conditioning, *args, **kwargs)


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
