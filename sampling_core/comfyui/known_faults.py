"""What people should know of a node's picture before they draw it: faults of the original that are reproduced."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prefect_regional_diffusion.sampling_core.comfyui.masks import noise_mask
from prefect_regional_diffusion.sampling_core.comfyui.node_passes import NodePass
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape


def known_faults(passes: Sequence[NodePass], shape: Shape, *, cut: bool) -> list[str]:
    """One line for each; joint composition is the way out of all but the last.

    `shape` is that of the latents; `cut` tells whether the pictures are cut out of one canvas.
    """
    found: list[str] = []
    uncovered = 0.0 if cut else _never_denoised(passes, shape)
    if uncovered > 0:
        found.append(f"{uncovered:.0%} of the canvas are soft edges that no pass denoises, as in the original")
    left = _left_noise(passes)
    if left > 0:
        found.append(f"noise of sigma {left:.3g} is left in the picture, as the original leaves it")
    if any(one.sampler == "dpm_adaptive" for one in passes):
        found.append("dpm_adaptive chooses its own steps: the counts are the fewest it can do with")
    return found


def _never_denoised(passes: Sequence[NodePass], shape: Shape) -> float:
    """Share of the latent cells that the regional passes leave alone, and the base's too."""
    masks = {id(mask): mask for one in passes if (mask := one.call.mask) is not None}
    if len(masks) < 2:
        return 0.0
    batch, _, rows, columns = shape
    reached = torch.zeros(batch, 1, rows, columns, dtype=torch.bool)
    for mask in masks.values():
        reached |= noise_mask(mask, (batch, 1, rows, columns)) > 0
    return 1.0 - float(reached.float().mean())


def _left_noise(passes: Sequence[NodePass]) -> float:
    """The highest sigma at which a mask's last pass stops."""
    last = {id(one.call.mask): one for one in passes if one.call.mask is not None}
    return max((0.0 if one.last_prediction else one.sigmas[-1] for one in last.values()), default=0.0)
