"""A job with sequential composition -> the run of its original node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect_regional_diffusion.sampling_core.comfyui import regional_sampler as regional
from prefect_regional_diffusion.sampling_core.comfyui.ksampler import KSamplerCall, Recovery, SamplerConfig
from prefect_regional_diffusion.sampling_core.comfyui.mask_grid import mask_grid
from prefect_regional_diffusion.sampling_core.comfyui.masks import PIXELS_PER_CELL
from prefect_regional_diffusion.sampling_core.comfyui.node_program import NodeStep, stages
from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import MaskGridCells, Sequential
from prefect_regional_diffusion.sampling_core.comfyui.two_samplers import (
    MASK,
    FullRun,
    two_advanced_samplers,
    two_samplers,
)
from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.comfyui_node import (
    MaskGridNKSamplersAdvanced,
    RegionalSampler,
    RegionalSamplerAdvanced,
    TwoAdvancedSamplersForMask,
    TwoSamplersForMask,
)
from prefect_regional_diffusion.sampling_core.job.resolved import ParticipantSettings, ResolvedJob
from prefect_regional_diffusion.sampling_core.names import CFG_PP
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import ModelLevels
from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask, Latent


def sequential(
    job: ResolvedJob, levels: Mapping[str, ModelLevels], clean: Latent, masks: Sequence[AnyMask]
) -> Sequential:
    """The run, from the latent [b, c, h, w]. `levels` are by model, `masks` are `region_masks`, in pixels.

    Raises BadInput for what the node cannot do, named by the job's own fields.
    """
    batch, channels, rows, columns = clean.shape
    shape = (batch, channels, rows, columns)
    try:
        turns, cells = _turns(job, shape, masks, job.height // rows)
        found = stages(turns, _settings(job), levels)
    except BadInput as error:
        field = f"node.{error.field}" if error.field in type(job.node).model_fields else error.field
        raise BadInput(field, error.value, error.allowed) from None
    warm_up = found[0].planned.steps if found and turns[0].who == regional.BASE and job.base_only_steps else 0
    return Sequential(tuple(found), clean, warm_up, cells)


def _turns(
    job: ResolvedJob, shape: Shape, masks: Sequence[AnyMask], cell: int
) -> tuple[list[NodeStep], MaskGridCells | None]:
    node, index = job.node, job.batch_index or None
    match node:
        case RegionalSampler():
            return regional.regional_sampler(
                _regions(job, masks),
                shape,
                seed=job.seed,
                steps=job.steps,
                seed_2nd=node.seed_2nd,
                seed_2nd_mode=node.seed_2nd_mode,
                base_only_steps=job.base_only_steps,
                denoise=job.denoise,
                overlap_factor=node.overlap_factor,
                restore_latent=node.restore_latent,
                recovery=_recovery(node),
                batch_index=index,
                vary_noise=node.vary_noise,
            ), None
        case RegionalSamplerAdvanced():
            return regional.regional_sampler_advanced(
                _regions(job, masks),
                shape,
                noise_seed=job.seed,
                steps=job.steps,
                add_noise=node.add_noise,
                start_at_step=node.start_at_step,
                end_at_step=node.end_at_step,
                overlap_factor=node.overlap_factor,
                restore_latent=node.restore_latent,
                return_with_leftover_noise=node.return_with_leftover_noise,
                recovery=_recovery(node),
                batch_index=index,
            ), None
        case TwoSamplersForMask():
            base = FullRun(job.seed, job.steps, job.denoise)
            # What the node leaves empty is filled in.
            assert node.mask_seed is not None
            assert node.mask_steps is not None
            assert node.mask_denoise is not None
            inside = FullRun(node.mask_seed, node.mask_steps, node.mask_denoise)
            return two_samplers(base, inside, masks[0], index), None
        case TwoAdvancedSamplersForMask():
            return two_advanced_samplers(
                masks[0],
                shape,
                seed=job.seed,
                steps=job.steps,
                denoise=job.denoise,
                overlap_factor=node.overlap_factor,
                batch_index=index,
            ), None
        case MaskGridNKSamplersAdvanced():
            if cell != PIXELS_PER_CELL:
                raise BadInput("model", job.base.model, f"a model with {PIXELS_PER_CELL} pixels per latent cell")
            call = KSamplerCall(
                job.steps,
                node.start_at_step,
                node.end_at_step,
                job.seed,
                node.add_noise,
                node.return_with_leftover_noise,
                batch_index=index,
            )
            return mask_grid(
                call, shape, masks[0], rows=node.rows, columns=node.columns, mode=node.mode, denoise=job.denoise
            )


def _recovery(node: RegionalSampler | RegionalSamplerAdvanced) -> Recovery:
    return Recovery(node.additional_mode, node.additional_sampler, node.additional_sigma_ratio)


def _regions(job: ResolvedJob, masks: Sequence[AnyMask]) -> list[regional.Region]:
    return [
        regional.Region(_name(job, i), mask, region.variation_seed, region.variation_strength, region.variation_method)
        for i, (region, mask) in enumerate(zip(job.regions, masks, strict=True))
    ]


def _name(job: ResolvedJob, index: int) -> str:
    """The name of a region's setting; people's names need not differ."""
    return MASK if isinstance(job.node, TwoSamplersForMask | TwoAdvancedSamplersForMask) else f"region {index + 1}"


def _settings(job: ResolvedJob) -> dict[str, SamplerConfig]:
    own = {_name(job, i): _setting(region.settings) for i, region in enumerate(job.regions)}
    return {regional.BASE: _setting(job.base)} | own


def _setting(settings: ParticipantSettings) -> SamplerConfig:
    sampler = settings.sampler
    guidance = ClassifierFreeGuidance(
        settings.cfg, settings.prompt, settings.negative_prompt, sampler in CFG_PP, settings.model
    )
    return SamplerConfig(sampler, settings.scheduler, guidance, settings.sigma_factor)
