"""Folders with a UNet that was trained on betas, and a KL autoencoder: what Stable Diffusion 1, 2 and XL share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefect_regional_diffusion.sampling_core.models.autoencoder_kl_config import AutoencoderKL
from prefect_regional_diffusion.sampling_core.models.control_file import ControlBase, ControlFile, open_control
from prefect_regional_diffusion.sampling_core.models.diffusers_folder import DiffusersFolder
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Reading
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.ip_adapter_file import (
    AttentionPlan,
    ImageAttention,
    IPAdapter,
    open_ip_adapter,
)
from prefect_regional_diffusion.sampling_core.models.kl_autoencoder import KLAutoencoder
from prefect_regional_diffusion.sampling_core.models.partial_canvas import PartialCanvas
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.prompt_chunks import prompt_chunks
from prefect_regional_diffusion.sampling_core.models.tensor_info import TensorInfo
from prefect_regional_diffusion.sampling_core.models.textual_inversion import Embeddings
from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.sampling_core.models.unet_config import UNet2DConditionModel
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels


@dataclass(frozen=True)
class BetaUNetFolder(DiffusersFolder):
    """A checked folder; `tokenizers` are those of its text encoders, in their order."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    tokenizers: tuple[PromptTokenizer, ...]
    levels: ModelLevels

    def partial_canvas(self, least_pixels: int) -> PartialCanvas:
        """Parts of a canvas of at least this edge, aligned to the UNet's coarsest level."""
        return PartialCanvas(least_pixels, self.vae.vae_scale_factor * 2 ** (len(self.unet.block_out_channels) - 1))

    def noise_schedule(self, canvas: Canvas, steps: int) -> ModelLevels:
        """The levels that the betas give, for every canvas and number of steps."""
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

    def chunks(self, prompt: str | None, syntax: PromptSyntax, embeddings: Embeddings) -> int:
        """The number of chunks for the text encoder that needs most."""
        lengths = {name: len(embedding) for name, embedding in embeddings.items()}
        return max(len(prompt_chunks(prompt or "", syntax, tokenizer, lengths)) for tokenizer in self.tokenizers)

    def reading(self, prompt: str) -> Reading:
        """How much of a prompt is read by the text encoder that reads the least."""
        return min((tokenizer.reading(prompt) for tokenizer in self.tokenizers), key=lambda reading: reading.end)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt, each once, that are no token of their own."""
        return self.tokenizers[0].unknown_words(prompt)

    def open_control(self, files: ModelFiles) -> ControlFile:
        """Compare a ControlNet or T2I-Adapter with the UNet. Raises ModelError."""
        return open_control(files, ControlBase(self.unet, self.vae.vae_scale_factor))

    def open_ip_adapter(self, files: ModelFiles) -> IPAdapter:
        """Compare an IP-Adapter's header with the UNet. Raises ModelError."""
        return open_ip_adapter(files, image_attention(self.networks["unet"].weights))

    def load_denoiser(self, placement: Placement) -> UNetDenoiser:
        """Read the UNet's weights. Raises ModelError."""
        return UNetDenoiser(self.load("unet", placement), self.levels)

    def load_autoencoder(self, placement: Placement) -> KLAutoencoder:
        """Read the autoencoder's weights. Raises ModelError."""
        return KLAutoencoder(self.load("vae", placement), self.vae.latent_affine, placement.tile)


def image_attention(unet: Mapping[str, TensorInfo]) -> AttentionPlan:
    """Where IP-Adapters act on a UNet of these weights: on the second attention of each of its transformer blocks.

    Files number all attention, in the order in which diffusers' UNet has its parts: down, up, middle.
    """
    end = ".attn2.to_k.weight"
    shapes = {name.removesuffix(".to_k.weight"): info.shape for name, info in unet.items() if name.endswith(end)}
    ordered = sorted(
        shapes, key=lambda name: (_PARTS.index(name.split(".")[0]), *map(int, re.findall(r"\.(\d+)", name)))
    )
    layers = tuple(ImageAttention(name, 2 * i + 1, shapes[name][0]) for i, name in enumerate(ordered))
    return AttentionPlan(layers, shapes[ordered[0]][1] if ordered else 0)


_PARTS = ("down_blocks", "up_blocks", "mid_block")


def check_widths(files: ModelFiles, unet: UNet2DConditionModel, vae: AutoencoderKL, encoders: Sequence[int]) -> None:
    """Raise ModelError for parts that do not fit together. `encoders` are the widths of the text encoders."""
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise files.error(
            f"has a unet that does not read and write the latents of its vae ({unet.in_channels} and "
            f"{unet.out_channels} channels, {vae.latent_channels} in vae/config.json)"
        )
    widths = unet.cross_attention_dim if isinstance(unet.cross_attention_dim, list) else [unet.cross_attention_dim]
    if set(widths) != {sum(encoders)}:
        raise files.error(
            f"has a unet that does not read its text_encoder (cross_attention_dim {widths[0]}, "
            f"hidden_size {' + '.join(map(str, encoders))})"
        )
