"""An original node with nothing left to look up in its job."""

from __future__ import annotations

from prefect_regional_diffusion.sampling_core.job.comfyui_node import (
    Node,
    RegionalSampler,
    RegionalSamplerAdvanced,
    TwoAdvancedSamplersForMask,
    TwoSamplersForMask,
)
from prefect_regional_diffusion.sampling_core.job.shared_fields import JobFields
from prefect_regional_diffusion.sampling_core.names import is_whole


def resolved_denoise(denoise: float) -> float:
    """1 wherever the whole schedule is taken."""
    return 1.0 if is_whole(denoise) else denoise


def base_factor(node: Node) -> float:
    """The factor of the base's sigmas; only some nodes have it."""
    match node:
        case RegionalSampler() | RegionalSamplerAdvanced() | TwoAdvancedSamplersForMask():
            return node.sigma_factor
        case _:
            return 1.0


def resolved_node(job: JobFields) -> Node:
    """The node with the job's values in fields that it leaves empty, and without a second seed that it does not use."""
    match job.node:
        case RegionalSampler(seed_2nd_mode="ignore") as node:
            return node.model_copy(update={"seed_2nd": 0})
        case RegionalSamplerAdvanced() as node:
            return node.model_copy(update={"end_at_step": min(node.end_at_step, job.steps)})
        case TwoSamplersForMask() as node:
            values = {
                "mask_seed": job.seed if node.mask_seed is None else node.mask_seed,
                "mask_steps": node.mask_steps or job.steps,
                "mask_denoise": resolved_denoise(node.mask_denoise or job.denoise),
            }
            return node.model_copy(update=values)
        case node:
            return node
