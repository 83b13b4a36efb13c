"""Recorded runs of the five nodes on our code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import SamplerConfig
from prefect_regional_diffusion.sampling_core.comfyui.mask_grid import mask_grid
from prefect_regional_diffusion.sampling_core.comfyui.node_passes import passes_of
from prefect_regional_diffusion.sampling_core.comfyui.regional_sampler import (
    RegionalPrompt,
    regional_sampler,
    regional_sampler_advanced,
)
from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import SequentialSamplingRun
from prefect_regional_diffusion.sampling_core.comfyui.two_samplers import two_advanced_samplers, two_samplers
from prefect_regional_diffusion.sampling_core.job.comfyui_node import RegionalSampler, RegionalSamplerAdvanced
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS
from tests.conformers.passes import (
    LEVELS,
    full_run_of,
    ksampler_call,
    latent_of,
    node_run,
    recovery_mode,
    sampler_config,
)
from tests.recordings import Case, Recordings

COMFYUI_SCHEDULES = {
    *("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic"),
    "kl_optimal",
}


def node(case: Case, recordings: Recordings) -> SequentialSamplingRun:
    return _NODES[case["node"]](case, recordings)


def _prompts(case: Case, recordings: Recordings) -> list[RegionalPrompt]:
    return [
        RegionalPrompt(
            sampler_config(case["samplers"][region["sampler"]]),
            recordings.mask(region["mask"]),
            region.get("variation_seed", 0),
            region.get("variation_strength", 0.0),
            region.get("variation_method", "linear"),
        )
        for region in case["regions"]
    ]


def _base(case: Case) -> SamplerConfig:
    return sampler_config(case["samplers"][case["base_sampler"]])


def _shape(latent: Tensor) -> Shape:
    batch, channels, rows, columns = latent.shape
    return batch, channels, rows, columns


def _inputs(case: Case, names: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The case's parameters: those with these names, and all others, which are inputs of the node's own."""
    params = case["params"] | {"additional_mode": recovery_mode(case["params"]["additional_mode"])}
    return {name: params[name] for name in names}, {name: params[name] for name in params.keys() - names}


def _regional(case: Case, recordings: Recordings) -> SequentialSamplingRun:
    latent, mask, index = latent_of(case, recordings)
    of_the_job, node_fields = _inputs(case, {"seed", "steps", "base_only_steps", "denoise"})
    # Not validated: some recordings are of values that jobs refuse.
    node = RegionalSampler.model_construct(**node_fields, vary_noise=case.get("source") == "impact_current")
    prompts = _prompts(case, recordings)
    calls = regional_sampler(
        node, _base(case), prompts, _shape(latent), latent_mask=mask, batch_index=index, **of_the_job
    )
    return node_run(passes_of(calls, LEVELS), latent)


def _regional_advanced(case: Case, recordings: Recordings) -> SequentialSamplingRun:
    latent, _, index = latent_of(case, recordings)
    of_the_job, node_fields = _inputs(case, {"noise_seed", "steps"})
    node = RegionalSamplerAdvanced.model_construct(**node_fields)
    prompts = _prompts(case, recordings)
    calls = regional_sampler_advanced(node, _base(case), prompts, _shape(latent), batch_index=index, **of_the_job)
    return node_run(passes_of(calls, LEVELS), latent)


def _two(case: Case, recordings: Recordings) -> SequentialSamplingRun:
    latent, _, _ = latent_of(case, recordings)
    base, inside = (full_run_of(case["samplers"][case[f"{role}_sampler"]]) for role in ("base", "mask"))
    return node_run(passes_of(two_samplers(base, inside, recordings.mask(case["mask"])), LEVELS), latent)


def _two_advanced(case: Case, recordings: Recordings) -> SequentialSamplingRun:
    params, mask = dict(case["params"]), recordings.mask(case["mask"])
    latent, _, _ = latent_of(case, recordings)
    base, inside = _base(case), sampler_config(case["samplers"][case["mask_sampler"]])
    if case.get("source") == "impact_current":
        node = RegionalSampler.model_construct(overlap_factor=params.pop("overlap_factor"), vary_noise=True)
        calls = regional_sampler(
            node, base, [RegionalPrompt(inside, mask)], _shape(latent), base_only_steps=1, **params
        )
    else:
        always = case.get("flags", {}).get("strings_to_bools") is False
        calls = two_advanced_samplers(base, inside, mask, _shape(latent), always_noise=always, **params)
    return node_run(passes_of(calls, LEVELS), latent)


def _grid(case: Case, recordings: Recordings) -> SequentialSamplingRun:
    params = case["params"]
    latent, mask, index = latent_of(case, recordings)
    config = _base(case)
    # ComfyUI's KSampler reads unknown names as its defaults; our jobs refuse them before they get here.
    config = config._replace(
        sampler=config.sampler if config.sampler in SOLVERS else "euler",
        scheduler=config.scheduler if config.scheduler in COMFYUI_SCHEDULES else "simple",
    )
    calls, cells = mask_grid(
        ksampler_call(config, params, mask, index),
        _shape(latent),
        recordings.mask(case["mask"])[0, :, :, 0],
        rows=params["rows"],
        columns=params["columns"],
        mode=params["mode"],
    )
    return node_run(passes_of(calls, LEVELS), latent, cells)


_NODES: dict[str, Callable[[Case, Recordings], SequentialSamplingRun]] = {
    "RegionalSampler": _regional,
    "RegionalSamplerAdvanced": _regional_advanced,
    "TwoSamplersForMask": _two,
    "TwoAdvancedSamplersForMask": _two_advanced,
    "MaskGridNKSamplersAdvanced": _grid,
}
