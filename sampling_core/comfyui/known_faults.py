"""What people should know of a node's picture before they draw it: faults of the original that are reproduced."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prefect_regional_diffusion.sampling_core.comfyui.masks import noise_mask
from prefect_regional_diffusion.sampling_core.comfyui.node_program import NodePass
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape


def known_faults(stages: Sequence[NodePass], shape: Shape, *, cut: bool) -> list[str]:
    """One line for each; joint composition is the way out of all but the last.

    `shape` is that of the latents; `cut` tells whether the pictures are cut out of one canvas.
    """
    found: list[str] = []
    uncovered = 0.0 if cut else _never_denoised(stages, shape)
    if uncovered > 0:
        found.append(f"{uncovered:.0%} of the canvas are soft edges that no pass denoises, as in the original")
    left = _left_noise(stages)
    if left > 0:
        found.append(f"noise of sigma {left:.3g} is left in the picture, as the original leaves it")
    if any(stage.planned.setting.sampler == "dpm_adaptive" for stage in stages):
        found.append("dpm_adaptive chooses its own steps: the counts are the fewest it can do with")
    return found


def _never_denoised(stages: Sequence[NodePass], shape: Shape) -> float:
    """Share of the latent cells that the regional passes leave alone, and the base's too."""
    masks = {id(mask): mask for stage in stages if (mask := stage.planned.call.mask) is not None}
    if len(masks) < 2:
        return 0.0
    batch, _, rows, columns = shape
    reached = torch.zeros(batch, 1, rows, columns, dtype=torch.bool)
    for mask in masks.values():
        reached |= noise_mask(mask, (batch, 1, rows, columns)) > 0
    return 1.0 - float(reached.float().mean())


def _left_noise(stages: Sequence[NodePass]) -> float:
    """The highest sigma at which a mask's last pass stops."""
    masked = [stage.planned for stage in stages if stage.planned.call.mask is not None]
    last = {id(planned.call.mask): planned for planned in masked}
    return max((0.0 if p.last_prediction else p.sigmas[-1] for p in last.values()), default=0.0)
