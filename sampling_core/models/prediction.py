"""Inputs of networks, and the clean latents that their outputs stand for, by prediction type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, PredictionType
from prefect_regional_diffusion.sampling_core.tensors.types import Rows


def sigma_column(levels: Sequence[Level], x: Rows) -> Tensor:
    """The sigmas [r, 1, 1, 1] of rows [r, c, h, w], float32 on their device."""
    return torch.tensor([level.sigma for level in levels], dtype=torch.float32)[:, None, None, None].to(x.device)


def scaled_input(x: Rows, sigma: Tensor, prediction: PredictionType) -> Rows:
    """The network's input: of unit variance for models trained on betas (EDM table 1, `c_in`)."""
    return x if prediction == "flow" else x / (sigma**2 + 1).sqrt()


def denoised(x: Rows, output: Rows, sigma: Tensor, prediction: PredictionType) -> Rows:
    """The clean latent that a network output stands for (EDM table 1; v: Salimans & Ho 2022, appendix D)."""
    if prediction == "v_prediction":
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()
    return x - sigma * output
