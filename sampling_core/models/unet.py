"""A diffusers UNet as a denoiser: input scaling, timestep, and prediction type stay in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models import lora_rows
from prefect_regional_diffusion.sampling_core.models.compiling import uncompiled
from prefect_regional_diffusion.sampling_core.models.conditioning import (
    POOLED_PROMPT_EMBEDS,
    PROMPT_EMBEDS,
    TIME_IDS,
    Conditioning,
)
from prefect_regional_diffusion.sampling_core.models.control_rows import RowInputs, residuals
from prefect_regional_diffusion.sampling_core.models.cross_attention_rows import attending_to_prompts
from prefect_regional_diffusion.sampling_core.models.ip_adapter_rows import attending_in_unet
from prefect_regional_diffusion.sampling_core.models.offloading import computing_device
from prefect_regional_diffusion.sampling_core.models.prediction import denoised, scaled_input, sigma_column
from prefect_regional_diffusion.sampling_core.models.prompt_rows import pooled
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels
from prefect_regional_diffusion.sampling_core.tensors.types import Rows

_ADDED_COND_NAMES = {POOLED_PROMPT_EMBEDS: "text_embeds", TIME_IDS: "time_ids"}
"""Tensors beside the prompt's own, and what the network calls them."""


class UNetDenoiser:
    """Answers rows at their levels with denoised predictions, in float32 around a network of any dtype."""

    def __init__(self, unet: Any, levels: ModelLevels) -> None:
        self._unet = unet
        self._levels = levels
        # diffusers walks over all layers to answer this.
        self._dtype: torch.dtype = unet.dtype

    @torch.inference_mode()
    def __call__(
        self, x: Rows, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Rows:
        dtype, device = self._dtype, computing_device(self._unet)
        sigma = sigma_column(levels, x)
        timesteps = torch.tensor([self._levels.timestep_of(level.sigma) for level in levels], device=device)
        tensors = {name: tensor.to(device, dtype) for name, tensor in conditioning.tensors.items()}
        shares = [row.prompts for row in adapters]
        if POOLED_PROMPT_EMBEDS in tensors:
            tensors[POOLED_PROMPT_EMBEDS] = pooled(tensors[POOLED_PROMPT_EMBEDS], shares)
        added_cond = {
            name_in_network: tensors[name] for name, name_in_network in _ADDED_COND_NAMES.items() if name in tensors
        }
        sample = scaled_input(x, sigma, self._levels.prediction).to(device, dtype)
        rows = RowInputs(sample, timesteps, tensors[PROMPT_EMBEDS], added_cond, shares)
        loras, images = [row.loras for row in adapters], [row.images for row in adapters]
        hooked = any(loras) or any(images) or any(shares)
        unet = uncompiled(self._unet) if hooked else self._unet
        with (
            lora_rows.apply_loras(unet, loras),
            attending_to_prompts(unet, shares, tensors[PROMPT_EMBEDS]) as tokens,
            attending_in_unet(unet, images),
        ):
            output: Tensor = unet(
                sample,
                timesteps,
                encoder_hidden_states=tokens,
                added_cond_kwargs=added_cond or None,
                return_dict=False,
                **residuals([row.controls for row in adapters], rows),
            )[0]
        return denoised(x, output.to(x.device, torch.float32), sigma, self._levels.prediction).clone()
