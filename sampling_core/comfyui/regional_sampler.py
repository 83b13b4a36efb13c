"""RegionalSampler and RegionalSamplerAdvanced as lists of calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import KSamplerCall, SamplerConfig, lengthened
from prefect_regional_diffusion.sampling_core.comfyui.masks import (
    base_mask,
    grown_in_mask_pixels,
    on_lattice,
    single_mask,
)
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.comfyui_node import RegionalSampler, RegionalSamplerAdvanced
from prefect_regional_diffusion.sampling_core.names import SecondSeedMode, VariationMethod
from prefect_regional_diffusion.sampling_core.noise.initial import HIGHEST_SEED, InitialNoise, Variation
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask

_SEED_WRAP = 2**50
"""Sums and differences of seeds wrap here, once, although seeds go further."""


class RegionalPrompt(NamedTuple):
    """A REGIONAL_PROMPT: a sampler, the mask in which it works, and a variation of the noise inside it."""

    config: SamplerConfig
    mask: AnyMask
    variation_seed: int = 0
    variation_strength: float = 0.0
    variation_method: VariationMethod = "linear"


def regional_sampler(
    node: RegionalSampler,
    base: SamplerConfig,
    regions: Sequence[RegionalPrompt],
    shape: Shape,
    *,
    seed: int,
    steps: int,
    base_only_steps: int = 2,
    denoise: float = 1.0,
    latent_mask: AnyMask | None = None,
    batch_index: tuple[int, ...] | None = None,
) -> list[KSamplerCall]:
    """RegionalSampler: the base alone for `base_only_steps`, then the base and each region in turn, step by step.

    The overlap factor is in mask pixels. `latent_mask` is the latent's own noise mask, which only the base-only
    stage sees. `vary_noise` applies the regions' variation, as the Impact Pack's later version does.
    Raises BadInput for no regions, masks of different sizes, a negative overlap, denoise 0 and seeds
    that leave the range of 0 to 2**64 - 1.
    """
    total = lengthened(steps, denoise)
    start = total - steps
    leftover = base_only_steps > 0 and node.seed_2nd_mode == "ignore"
    second = second_seed(seed, node.seed_2nd, node.seed_2nd_mode)
    step = _base_step(node, base, regions, shape, total, second, batch_index)
    masks = _grown_masks(regions, node.overlap_factor, shape)
    calls: list[KSamplerCall] = []
    if base_only_steps > 0:
        noise = _varied_noise(regions, shape, seed, batch_index) if node.vary_noise else None
        end = start + base_only_steps
        calls.append(KSamplerCall(base, total, start, end, seed, True, leftover, latent_mask, noise, batch_index))
    add_noise = not leftover
    # In the later version every base pass of the loop gets this noise as an input, and adds it.
    noise = _varied_noise(regions, shape, second, batch_index) if add_noise and node.vary_noise else None
    for i in range(start + base_only_steps, total):
        first = add_noise and i == start + base_only_steps
        calls += _step_calls(step._replace(start=i, end=i + 1, add_noise=first, noise=noise), regions, masks, node)
    if not node.restore_latent:
        # Past the end of all schedules but ddim_uniform's, which has an interval more.
        calls.append(step._replace(start=total, end=total + 1, leftover=False))
    return calls


def regional_sampler_advanced(
    node: RegionalSamplerAdvanced,
    base: SamplerConfig,
    regions: Sequence[RegionalPrompt],
    shape: Shape,
    *,
    noise_seed: int,
    steps: int,
    batch_index: tuple[int, ...] | None = None,
) -> list[KSamplerCall]:
    """RegionalSamplerAdvanced: the same loop for the steps [start_at_step, end_at_step) but the last.

    The last step is a base pass that finishes; with `restore_latent` the original throws its result away, so
    it is no call here. Raises BadInput as `regional_sampler` does.
    """
    step = _base_step(node, base, regions, shape, steps, noise_seed, batch_index)
    masks = _grown_masks(regions, node.overlap_factor, shape)
    end = min(steps, node.end_at_step)
    calls: list[KSamplerCall] = []
    for i in range(node.start_at_step, end - 1):
        add_noise = node.add_noise and i == node.start_at_step
        noise = _varied_noise(regions, shape, noise_seed, batch_index) if add_noise else None
        calls += _step_calls(step._replace(start=i, end=i + 1, add_noise=add_noise, noise=noise), regions, masks, node)
    if not node.restore_latent:
        calls.append(step._replace(start=end - 1, end=end, leftover=node.return_with_leftover_noise))
    return calls


def _base_step(
    node: RegionalSampler | RegionalSamplerAdvanced,
    base: SamplerConfig,
    regions: Sequence[RegionalPrompt],
    shape: Shape,
    steps: int,
    seed: int,
    batch_index: tuple[int, ...] | None,
) -> KSamplerCall:
    """A base pass outside of all regions, over the whole schedule: each call of the loop is a step of it."""
    inverse = on_lattice(base_mask([region.mask for region in regions]), shape[2:])
    return KSamplerCall(
        base,
        steps,
        0,
        steps,
        seed,
        add_noise=False,
        leftover=True,
        mask=inverse,
        batch_index=batch_index,
        recovery_mode=node.additional_mode,
        recovery_sampler=node.additional_sampler,
        recovery_sigma_ratio=node.additional_sigma_ratio,
    )


def _step_calls(
    base: KSamplerCall,
    regions: Sequence[RegionalPrompt],
    masks: Sequence[AnyMask],
    node: RegionalSampler | RegionalSamplerAdvanced,
) -> list[KSamplerCall]:
    """A step of the base, and the same of each region under its grown mask."""
    call = base._replace(add_noise=False, noise=None, restore=node.restore_latent)
    return [
        base,
        *(call._replace(config=region.config, mask=mask) for region, mask in zip(regions, masks, strict=True)),
    ]


def _grown_masks(regions: Sequence[RegionalPrompt], overlap_factor: int, shape: Shape) -> list[AnyMask]:
    return [on_lattice(grown_in_mask_pixels(region.mask, overlap_factor), shape[2:]) for region in regions]


def _varied_noise(
    regions: Sequence[RegionalPrompt], shape: Shape, seed: int, batch_index: tuple[int, ...] | None
) -> InitialNoise:
    variations = tuple(
        Variation(single_mask(region.mask), region.variation_seed, region.variation_strength, region.variation_method)
        for region in regions
        if region.variation_strength > 0
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
            second = total - _SEED_WRAP if total > _SEED_WRAP else total
        case "seed-seed_2nd":
            total = seed - seed_2nd
            second = total + _SEED_WRAP if total < 0 else total
        case _:
            second = seed_2nd
    if second > HIGHEST_SEED:
        raise BadInput("seed_2nd", seed_2nd, f"a second seed that gives at most {HIGHEST_SEED} with the first")
    return second
