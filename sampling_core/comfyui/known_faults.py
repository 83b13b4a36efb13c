"""Warnings about a node's picture before it is drawn: faults of the original that are reproduced."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prefect_regional_diffusion.sampling_core.comfyui.masks import noise_mask
from prefect_regional_diffusion.sampling_core.comfyui.node_passes import NodePass
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape


def known_faults(passes: Sequence[NodePass], shape: Shape, *, cut: bool) -> list[str]:
    """One line for each; joint composition is the way out of all but the last.

    `shape` is that of the latents; `cut` is whether the pictures are cut out of one canvas.
    """
    warnings: list[str] = []
    uncovered = 0.0 if cut else _never_denoised(passes, shape)
    if uncovered > 0:
        warnings.append(f"{uncovered:.0%} of the canvas are soft edges that no pass denoises, as in the original")
    sigma = _leftover_sigma(passes)
    if sigma > 0:
        warnings.append(f"noise of sigma {sigma:.3g} is left in the picture, as the original leaves it")
    if any(node_pass.sampler == "dpm_adaptive" for node_pass in passes):
        warnings.append("dpm_adaptive chooses its own steps: the counts are the fewest it can do with")
    return warnings


def _never_denoised(passes: Sequence[NodePass], shape: Shape) -> float:
    """Share of the latent cells that the regional passes leave alone, and the base's too."""
    masks = {id(mask): mask for node_pass in passes if (mask := node_pass.call.mask) is not None}
    if len(masks) < 2:
        return 0.0
    batch, _, rows, columns = shape
    denoised = torch.zeros(batch, 1, rows, columns, dtype=torch.bool)
    for mask in masks.values():
        denoised |= noise_mask(mask, (batch, 1, rows, columns)) > 0
    return 1.0 - float(denoised.float().mean())


def _leftover_sigma(passes: Sequence[NodePass]) -> float:
    """The highest sigma at which a mask's last pass stops."""
    last = {id(node_pass.call.mask): node_pass for node_pass in passes if node_pass.call.mask is not None}
    return max((0.0 if node_pass.last_prediction else node_pass.sigmas[-1] for node_pass in last.values()), default=0.0)
