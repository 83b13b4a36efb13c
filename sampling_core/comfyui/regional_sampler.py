"""RegionalSampler and RegionalSamplerAdvanced as lists of turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import NO_RECOVERY, KSamplerCall, Recovery, lengthened
from prefect_regional_diffusion.sampling_core.comfyui.masks import (
    base_mask,
    grown_in_mask_pixels,
    on_lattice,
    single_mask,
)
from prefect_regional_diffusion.sampling_core.comfyui.node_program import NodeStep
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.names import SecondSeedMode, VariationMethod
from prefect_regional_diffusion.sampling_core.noise.initial import HIGHEST_SEED, InitialNoise, Variation
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask

BASE = "base"
HALFWAY = Recovery("ratio between", "AUTO", 0.3)
"""The nodes' default recovery."""
_SEED_WRAP = 2**50
"""Sums and differences of seeds wrap here, once, although seeds go further."""


class Region(NamedTuple):
    """A regional prompt: the name of its setting, its mask, and a variation of the noise inside it."""

    name: str
    mask: AnyMask
    variation_seed: int = 0
    variation_strength: float = 0.0
    variation_method: VariationMethod = "linear"


def regional_sampler(
    regions: Sequence[Region],
    shape: Shape,
    *,
    seed: int,
    steps: int,
    seed_2nd: int = 0,
    seed_2nd_mode: SecondSeedMode = "ignore",
    base_only_steps: int = 2,
    denoise: float = 1.0,
    overlap_factor: int = 10,
    restore_latent: bool = True,
    recovery: Recovery = HALFWAY,
    latent_mask: AnyMask | None = None,
    batch_index: tuple[int, ...] | None = None,
    vary_noise: bool = False,
) -> list[NodeStep]:
    """RegionalSampler: the base alone for `base_only_steps`, then the base and each region in turn, step by step.

    `overlap_factor` is in mask pixels. `latent_mask` is the latent's own noise mask, which only the base-only
    stage sees. `vary_noise` applies the regions' variation, as the Impact Pack's later version does.
    Raises BadInput for no regions, masks of different sizes, a negative overlap, denoise 0 and seeds
    that leave the range of 0 to 2**64 - 1.
    """
    inverse = on_lattice(base_mask([region.mask for region in regions]), shape[2:])
    grown = _grown(regions, overlap_factor, shape)
    total = lengthened(steps, denoise)
    start = total - steps
    leftover = base_only_steps > 0 and seed_2nd_mode == "ignore"
    turns: list[NodeStep] = []
    if base_only_steps > 0:
        end = start + base_only_steps
        noise = _varied(regions, shape, seed, batch_index) if vary_noise else None
        call = KSamplerCall(total, start, end, seed, True, leftover, latent_mask, noise, NO_RECOVERY, batch_index)
        turns.append(NodeStep(BASE, call))
    seed = second_seed(seed, seed_2nd, seed_2nd_mode)
    add_noise = not leftover
    # The later version hands its noise to every base pass of the loop, and a pass adds what it is handed.
    noise = _varied(regions, shape, seed, batch_index) if add_noise and vary_noise else None
    for i in range(start + base_only_steps, total):
        base = KSamplerCall(total, i, i + 1, seed, add_noise, True, inverse, noise, recovery, batch_index)
        turns.append(NodeStep(BASE, base))
        turns += _region_turns(base, regions, grown, restore_latent)
        add_noise = False
    if not restore_latent:
        # Past the end of all schedules but ddim_uniform's, which has an interval more.
        turns.append(
            NodeStep(
                BASE, KSamplerCall(total, total, total + 1, seed, False, False, inverse, None, recovery, batch_index)
            )
        )
    return turns


def regional_sampler_advanced(
    regions: Sequence[Region],
    shape: Shape,
    *,
    noise_seed: int,
    steps: int,
    add_noise: bool = True,
    start_at_step: int = 0,
    end_at_step: int = 10000,
    overlap_factor: int = 10,
    restore_latent: bool = True,
    return_with_leftover_noise: bool = False,
    recovery: Recovery = HALFWAY,
    batch_index: tuple[int, ...] | None = None,
) -> list[NodeStep]:
    """RegionalSamplerAdvanced: the same loop for the steps [start_at_step, end_at_step) but the last.

    The last step is a base pass that finishes; with `restore_latent` the original throws its result away, so
    it is no turn here. Raises BadInput as `regional_sampler` does.
    """
    inverse = on_lattice(base_mask([region.mask for region in regions]), shape[2:])
    grown = _grown(regions, overlap_factor, shape)
    end = min(steps, end_at_step)
    turns: list[NodeStep] = []
    for i in range(start_at_step, end - 1):
        adds = add_noise and i == start_at_step
        noise = _varied(regions, shape, noise_seed, batch_index) if adds else None
        base = KSamplerCall(steps, i, i + 1, noise_seed, adds, True, inverse, noise, recovery, batch_index)
        turns.append(NodeStep(BASE, base))
        turns += _region_turns(base, regions, grown, restore_latent)
    if not restore_latent:
        last = KSamplerCall(
            steps, end - 1, end, noise_seed, False, return_with_leftover_noise, inverse, None, recovery, batch_index
        )
        turns.append(NodeStep(BASE, last))
    return turns


def _region_turns(
    base: KSamplerCall, regions: Sequence[Region], grown: Sequence[AnyMask], restore: bool
) -> list[NodeStep]:
    return [
        NodeStep(region.name, base._replace(mask=mask, add_noise=False, noise=None), restore)
        for region, mask in zip(regions, grown, strict=True)
    ]


def _grown(regions: Sequence[Region], overlap_factor: int, shape: Shape) -> list[AnyMask]:
    return [on_lattice(grown_in_mask_pixels(region.mask, overlap_factor), shape[2:]) for region in regions]


def _varied(regions: Sequence[Region], shape: Shape, seed: int, batch_index: tuple[int, ...] | None) -> InitialNoise:
    variations = tuple(
        Variation(single_mask(r.mask), r.variation_seed, r.variation_strength, r.variation_method)
        for r in regions
        if r.variation_strength > 0
    )
    noise = InitialNoise(seed, shape, batch_index, variations, original=True)
    # Impossible seeds and masks are refused now and not in the midst of the run.
    noise.draw()
    return noise


def second_seed(seed: int, seed_2nd: int, mode: SecondSeedMode) -> int:
    """The seed of the regional stage. Sums and differences wrap at 2**50, once; all other modes mean `fixed`."""
    match mode:
        case "ignore":
            return seed
        case "seed+seed_2nd":
            total = seed + seed_2nd
            wrapped = total - _SEED_WRAP if total > _SEED_WRAP else total
        case "seed-seed_2nd":
            total = seed - seed_2nd
            wrapped = total + _SEED_WRAP if total < 0 else total
        case _:
            wrapped = seed_2nd
    if wrapped > HIGHEST_SEED:
        raise BadInput("seed_2nd", seed_2nd, f"a second seed that gives at most {HIGHEST_SEED} with the first")
    return wrapped
