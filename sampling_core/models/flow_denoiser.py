"""A transformer of diffusers' that was trained as a rectified flow, as a denoiser: what those of all families share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.prediction import denoised, sigma_column
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.tensors.types import Rows


class FlowDenoiser:
    """Answers rows at their levels with denoised predictions, in float32 around a network of any dtype.

    Families derive from it.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        # diffusers walks over all layers to answer this.
        self._dtype: torch.dtype = transformer.dtype

    @torch.inference_mode()
    def __call__(
        self, x: Rows, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Rows:
        sigma = sigma_column(levels, x)
        velocity = self._velocity(x, sigma, conditioning, adapters)
        return denoised(x, velocity.to(x.device, torch.float32), sigma, "flow").clone()

    def _velocity(self, x: Rows, sigma: Tensor, conditioning: Conditioning, adapters: Sequence[RowAdapters]) -> Tensor:
        """The network's velocity from picture to noise [r, c, h, w], of its own dtype, at sigmas [r, 1, 1, 1]."""
        raise NotImplementedError
