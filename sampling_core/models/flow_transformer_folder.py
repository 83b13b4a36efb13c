"""Folders with a rectified-flow transformer and a KL autoencoder: what Stable Diffusion 3, FLUX and Z-Image share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from prefect_regional_diffusion.sampling_core.models.autoencoder_kl_config import (
    AUTOENCODER_KL,
    WITHOUT_MEAN,
    AutoencoderKL,
)
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import DiffusersFolder
from prefect_regional_diffusion.sampling_core.models.family import Canvas
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.flow_scheduler import FlowScheduler
from prefect_regional_diffusion.sampling_core.models.kl_autoencoder import KLAutoencoder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels


class VAE(AutoencoderKL):
    ONLY: ClassVar[Mapping[str, object]] = {**AutoencoderKL.ONLY, **WITHOUT_MEAN}


FLOW_VAE = replace(AUTOENCODER_KL, configuration=VAE)
"""The autoencoder: its latents are scaled and shifted, all channels alike."""


@dataclass(frozen=True)
class FlowTransformerFolder(DiffusersFolder):
    """A checked folder. A token of the transformer is `patch` x `patch` latent cells, and `width` features inside."""

    vae: AutoencoderKL
    scheduler: FlowScheduler
    patch: int
    width: int

    @property
    def pixel_multiple(self) -> int:
        """Pixels of a token, in each direction."""
        return self.patch * self.vae.vae_scale_factor

    def tokens(self, canvas: Canvas) -> int:
        """Tokens of a picture of this size."""
        return (canvas.width // self.pixel_multiple) * (canvas.height // self.pixel_multiple)

    def noise_schedule(self, canvas: Canvas, steps: int) -> ModelLevels:
        """The levels that the scheduler has for so many tokens."""
        return self.scheduler.levels(self.tokens(canvas))

    def working_numbers(self, canvas: Canvas, rows: int) -> int:
        """A rough estimate of the larger of one forward of so many rows and the decoding of one picture.

        In a forward, a token's queries, keys, values and the four times wider layer after them are alive at once.
        """
        forward = rows * self.tokens(canvas) * self.width * 16
        decoding = canvas.width * canvas.height * self.vae.block_out_channels[0] * 8
        return max(forward, decoding)

    def load_autoencoder(self, placement: Placement) -> KLAutoencoder:
        """Read the autoencoder's weights. Raises ModelError."""
        return KLAutoencoder(self.load("vae", placement), self.vae.latent_affine, placement.tile)


def check_fit(files: ModelFiles, quantity: str, sizes: Mapping[str, int]) -> None:
    """Raise ModelError unless all `sizes`, by the part that has each, are equal."""
    if len(set(sizes.values())) > 1:
        listing = ", ".join(f"{name} {number}" for name, number in sizes.items())
        raise files.error(f"has parts that differ in their {quantity} ({listing})")
