"""TwoSamplersForMask and TwoAdvancedSamplersForMask: one sampler outside a mask, another inside."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import KSamplerCall, SamplerConfig, lengthened
from prefect_regional_diffusion.sampling_core.comfyui.masks import base_mask_of_two, grown_in_latent_cells, on_lattice
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask


def two_samplers(base: KSamplerCall, inside: KSamplerCall, mask: AnyMask) -> list[KSamplerCall]:
    """TwoSamplersForMask: a full run wherever the mask is not 1, then a full run under the mask.

    Unlike the original it leaves the caller's latent alone.
    """
    calls = [base._replace(mask=base_mask_of_two(mask)), inside._replace(mask=mask)]
    # A run of no steps changes nothing.
    return [call for call in calls if call.start < call.end]


def two_advanced_samplers(
    base: SamplerConfig,
    inside: SamplerConfig,
    mask: AnyMask,
    shape: Shape,
    *,
    seed: int,
    steps: int,
    denoise: float = 1.0,
    overlap_factor: int = 10,
    batch_index: tuple[int, ...] | None = None,
    always_noise: bool = False,
) -> list[KSamplerCall]:
    """TwoAdvancedSamplersForMask: for every step the base outside the mask, then the other under the grown mask.

    `overlap_factor` is in latent cells. `always_noise` adds noise in every pass and leaves it, which is what
    later versions make of this node's words 'enable' and 'disable'.
    Raises BadInput for no steps, denoise 0 and a negative overlap.
    """
    if steps < 1:
        raise BadInput("steps", steps, "1 or more")
    outside_mask = on_lattice(base_mask_of_two(mask), shape[2:])
    grown_mask = on_lattice(grown_in_latent_cells(mask, shape[2:], overlap_factor), shape[2:])
    total = lengthened(steps, denoise)
    start = total - steps
    # The recovery of this node cannot be set: special samplers take every step twice.
    step = KSamplerCall(
        base, total, start, total, seed, False, True, batch_index=batch_index, recovery_mode="ratio additional"
    )
    calls: list[KSamplerCall] = []
    for i in range(start, total):
        first, last = i == start or always_noise, i + 1 == total and not always_noise
        step = step._replace(start=i, end=i + 1)
        calls.append(step._replace(add_noise=first, mask=outside_mask))
        calls.append(step._replace(config=inside, add_noise=always_noise, leftover=not last, mask=grown_mask))
    return calls
