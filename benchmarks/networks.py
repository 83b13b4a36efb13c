"""Networks to measure with: one that keeps its own time, and one of about 20 M random weights."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.family import Denoiser
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.tensors.types import Rows


class Timed:
    """A network that adds up the time spent inside it."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.seconds = 0.0

    def __call__(
        self, x: Rows, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Rows:
        start = time.perf_counter()
        answer = self.inner(x, levels, conditioning, adapters)
        self.seconds += time.perf_counter() - start
        return answer


def large_unet() -> UNet2DConditionModel:
    """A UNet of about 20 M parameters with random weights, for latents of 4 channels and embeddings of 32 features."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(96, 192, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()
