"""A diffusers UNet as a denoiser: input scaling, timestep, and prediction type stay in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS, Conditioning
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, ModelLevels, PredictionType
from prefect_regional_diffusion.sampling_core.tensors.types import Rows


class UNetDenoiser:
    """Answers rows at their levels with denoised predictions, in float32 around a network of any dtype."""

    def __init__(self, unet: Any, levels: ModelLevels) -> None:
        self._unet = unet
        self._levels = levels

    @torch.inference_mode()
    def __call__(self, x: Rows, levels: Sequence[Level], conditioning: Conditioning) -> Rows:
        network_dtype, device = self._unet.dtype, self._unet.device
        sigma = torch.tensor([level.sigma for level in levels], dtype=torch.float32)[:, None, None, None].to(x.device)
        timesteps = torch.tensor([self._levels.timestep_of(level.sigma) for level in levels], device=device)
        output: Tensor = self._unet(
            scaled_input(x, sigma, self._levels.prediction).to(device, network_dtype),
            timesteps,
            encoder_hidden_states=conditioning[PROMPT_EMBEDS].to(device, network_dtype),
            return_dict=False,
        )[0]
        return denoised(x, output.to(x.device, torch.float32), sigma, self._levels.prediction).clone()


def scaled_input(x: Rows, sigma: Tensor, prediction: PredictionType) -> Rows:
    """What the network is shown: unit variance for models trained on betas (EDM table 1, `c_in`)."""
    return x if prediction == "flow" else x / (sigma**2 + 1).sqrt()


def denoised(x: Rows, output: Rows, sigma: Tensor, prediction: PredictionType) -> Rows:
    """The clean latent that a network output stands for (EDM table 1; v: Salimans & Ho 2022, appendix D)."""
    if prediction == "v_prediction":
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()
    return x - sigma * output
