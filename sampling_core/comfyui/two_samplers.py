"""TwoSamplersForMask and TwoAdvancedSamplersForMask: one sampler outside a mask, another inside."""

from __future__ import annotations

from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import KSamplerCall, Recovery, full_run, lengthened
from prefect_regional_diffusion.sampling_core.comfyui.masks import base_mask_of_two, grown_in_latent_cells, on_lattice
from prefect_regional_diffusion.sampling_core.comfyui.node_program import NodeStep
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask

BASE, MASK = "base", "mask"
WHOLE_STEP_AGAIN = Recovery("ratio additional", "AUTO", 1.0)
"""The recovery of this node cannot be set: special samplers take every step twice."""


class FullRun(NamedTuple):
    """What a KSAMPLER has of its own beside its setting: seed, steps and denoise."""

    seed: int
    steps: int
    denoise: float = 1.0


def two_samplers(
    base: FullRun, inside: FullRun, mask: AnyMask, batch_index: tuple[int, ...] | None = None
) -> list[NodeStep]:
    """TwoSamplersForMask: a full run wherever the mask is not 1, then a full run under the mask.

    Unlike the original it leaves the caller's latent alone. Raises BadInput for denoise 0.
    """
    works = [(BASE, base, base_mask_of_two(mask)), (MASK, inside, mask)]
    calls = [
        (who, work.steps, full_run(work.seed, work.steps, work.denoise, where, batch_index))
        for who, work, where in works
    ]
    # A run of no steps changes nothing.
    return [NodeStep(who, call) for who, steps, call in calls if steps > 0]


def two_advanced_samplers(
    mask: AnyMask,
    shape: Shape,
    *,
    seed: int,
    steps: int,
    denoise: float = 1.0,
    overlap_factor: int = 10,
    recovery: Recovery = WHOLE_STEP_AGAIN,
    batch_index: tuple[int, ...] | None = None,
    always_noise: bool = False,
) -> list[NodeStep]:
    """TwoAdvancedSamplersForMask: for every step the base outside the mask, then the other under the grown mask.

    `overlap_factor` is in latent cells. `always_noise` adds noise in every pass and leaves it, which is what
    later versions make of this node's words 'enable' and 'disable'.
    Raises BadInput for no steps, denoise 0 and a negative overlap.
    """
    if steps < 1:
        raise BadInput("steps", steps, "1 or more")
    outside = on_lattice(base_mask_of_two(mask), shape[2:])
    grown = on_lattice(grown_in_latent_cells(mask, shape[2:], overlap_factor), shape[2:])
    total = lengthened(steps, denoise)
    start = total - steps
    turns: list[NodeStep] = []
    for i in range(start, total):
        first, last = i == start or always_noise, i + 1 == total and not always_noise
        base = KSamplerCall(
            total, i, i + 1, seed, first, leftover=True, mask=outside, recovery=recovery, batch_index=batch_index
        )
        turns.append(NodeStep(BASE, base))
        turns.append(NodeStep(MASK, base._replace(mask=grown, add_noise=always_noise, leftover=not last)))
    return turns
