"""A job with sequential composition -> the run of its original node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import KSamplerCall, SamplerConfig, full_run
from prefect_regional_diffusion.sampling_core.comfyui.mask_grid import mask_grid
from prefect_regional_diffusion.sampling_core.comfyui.masks import PIXELS_PER_CELL
from prefect_regional_diffusion.sampling_core.comfyui.node_passes import passes_of
from prefect_regional_diffusion.sampling_core.comfyui.regional_sampler import (
    RegionalPrompt,
    regional_sampler,
    regional_sampler_advanced,
)
from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import LatentBox, SequentialSamplingRun
from prefect_regional_diffusion.sampling_core.comfyui.two_samplers import two_advanced_samplers, two_samplers
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.comfyui_node import (
    MaskGridNKSamplersAdvanced,
    RegionalSampler,
    RegionalSamplerAdvanced,
    TwoAdvancedSamplersForMask,
    TwoSamplersForMask,
)
from prefect_regional_diffusion.sampling_core.job.resolved import ParticipantSettings, ResolvedJob
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape
from prefect_regional_diffusion.sampling_core.planning.model_fit import guidance_of
from prefect_regional_diffusion.sampling_core.schedules import original_sigmas
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask, Latent


def sequential(
    job: ResolvedJob, levels: Mapping[str, ModelLevels], clean: Latent, masks: Sequence[AnyMask]
) -> SequentialSamplingRun:
    """The run, from the latent [b, c, h, w]. `levels` are by model, `masks` are `region_masks`, in pixels.

    Raises BadInput for what the node cannot do, named by the job's own fields.
    """
    batch, channels, rows, columns = clean.shape
    shape = (batch, channels, rows, columns)
    try:
        calls, cells = _calls(job, shape, masks, job.height // rows, _base_sigmas(job, levels[job.base.model]))
        passes = passes_of(calls, levels)
    except BadInput as error:
        field = f"node.{error.field}" if error.field in type(job.node).model_fields else error.field
        raise BadInput(field, error.value, error.allowed) from None
    base_only_steps = passes[0].steps if passes and job.base_only_steps else 0
    return SequentialSamplingRun(tuple(passes), clean, base_only_steps, cells)


def _base_sigmas(job: ResolvedJob, levels: ModelLevels) -> tuple[float, ...]:
    """The sigmas of the job's own schedule, which say when controls and image prompts act; none, if there are none."""
    if not job.controls and not job.image_prompt_uses:
        return ()
    return original_sigmas(levels, job.base.sampler, job.base.scheduler, job.steps, job.denoise)


def _calls(
    job: ResolvedJob, shape: Shape, masks: Sequence[AnyMask], cell: int, sigmas: Sequence[float]
) -> tuple[list[KSamplerCall], tuple[LatentBox, ...]]:
    """What the node asks of its samplers, and the cells that its result is cut into: none, if it is one picture.

    `sigmas` are those of the job's own schedule.
    """
    node, index, base = job.node, job.batch_index or None, _config(job.base, job, sigmas)
    match node:
        case RegionalSampler():
            return regional_sampler(
                node,
                base,
                _regional_prompts(job, masks, sigmas),
                shape,
                seed=job.seed,
                steps=job.steps,
                base_only_steps=job.base_only_steps,
                denoise=job.denoise,
                batch_index=index,
            ), ()
        case RegionalSamplerAdvanced():
            regions = _regional_prompts(job, masks, sigmas)
            return regional_sampler_advanced(
                node, base, regions, shape, noise_seed=job.seed, steps=job.steps, batch_index=index
            ), ()
        case TwoSamplersForMask():
            # What the node leaves empty is filled in.
            assert node.mask_seed is not None
            assert node.mask_steps is not None
            assert node.mask_denoise is not None
            outside = full_run(base, job.seed, job.steps, job.denoise, batch_index=index)
            inside = full_run(
                _inside(job, sigmas), node.mask_seed, node.mask_steps, node.mask_denoise, batch_index=index
            )
            return two_samplers(outside, inside, masks[0]), ()
        case TwoAdvancedSamplersForMask():
            return two_advanced_samplers(
                base,
                _inside(job, sigmas),
                masks[0],
                shape,
                seed=job.seed,
                steps=job.steps,
                denoise=job.denoise,
                overlap_factor=node.overlap_factor,
                batch_index=index,
            ), ()
        case MaskGridNKSamplersAdvanced():
            if cell != PIXELS_PER_CELL:
                raise BadInput("model", job.base.model, f"a model with {PIXELS_PER_CELL} pixels per latent cell")
            call = KSamplerCall(
                base,
                job.steps,
                node.start_at_step,
                node.end_at_step,
                job.seed,
                node.add_noise,
                node.return_with_leftover_noise,
                batch_index=index,
                ksampler_denoise=job.denoise,
            )
            return mask_grid(call, shape, masks[0], rows=node.rows, columns=node.columns, mode=node.mode)


def _regional_prompts(job: ResolvedJob, masks: Sequence[AnyMask], sigmas: Sequence[float]) -> list[RegionalPrompt]:
    return [
        RegionalPrompt(
            _config(region.settings, job, sigmas),
            mask,
            region.variation_seed,
            region.variation_strength,
            region.variation_method,
        )
        for region, mask in zip(job.regions, masks, strict=True)
    ]


def _inside(job: ResolvedJob, sigmas: Sequence[float]) -> SamplerConfig:
    """What is sampled with under the mask of a node that has a single one."""
    return _config(job.regions[0].settings, job, sigmas)


def _config(settings: ParticipantSettings, job: ResolvedJob, sigmas: Sequence[float]) -> SamplerConfig:
    guidance = guidance_of(settings, job, sigmas)
    return SamplerConfig(settings.sampler, settings.scheduler, guidance, settings.sigma_factor)
