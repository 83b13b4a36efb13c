"""Recorded runs of the five nodes on our code."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from prefect_regional_diffusion.sampling_core.comfyui.ksampler import SamplerConfig
from prefect_regional_diffusion.sampling_core.comfyui.mask_grid import mask_grid
from prefect_regional_diffusion.sampling_core.comfyui.node_program import NodeStep, stages
from prefect_regional_diffusion.sampling_core.comfyui.regional_sampler import (
    Region,
    regional_sampler,
    regional_sampler_advanced,
)
from prefect_regional_diffusion.sampling_core.comfyui.two_samplers import FullRun, two_advanced_samplers, two_samplers
from prefect_regional_diffusion.sampling_core.noise.step_noise import Shape
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS
from tests.conformers.passes import LEVELS, check_cost, ksampler_call, latent_of, recovery, setting, walked
from tests.recordings import SCALING, Case, Recordings

COMFYUI_SCHEDULES = {
    *("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic"),
    "kl_optimal",
}


def node(case: Case, recordings: Recordings) -> Tensor:
    return _NODES[case["node"]](case, recordings)


def _regions(case: Case, recordings: Recordings) -> list[Region]:
    return [
        Region(
            f"region {i}",
            recordings.mask(region["mask"]),
            region.get("variation_seed", 0),
            region.get("variation_strength", 0.0),
            region.get("variation_method", "linear"),
        )
        for i, region in enumerate(case["regions"])
    ]


def _settings(case: Case) -> dict[str, SamplerConfig]:
    regions = {f"region {i}": setting(case["samplers"][r["sampler"]]) for i, r in enumerate(case["regions"])}
    return {"base": setting(case["samplers"][case["base_sampler"]])} | regions


def _shape(latent: Tensor) -> Shape:
    batch, channels, rows, columns = latent.shape
    return batch, channels, rows, columns


def _play(
    case: Case, recordings: Recordings, turns: list[NodeStep], settings: Mapping[str, SamplerConfig], latent: Tensor
) -> Tensor:
    found, count = walked(recordings, stages(turns, settings, LEVELS), latent)
    check_cost(case, count)
    return found / SCALING


def _regional(case: Case, recordings: Recordings) -> Tensor:
    params = dict(case["params"])
    latent, mask, index = latent_of(case, recordings)
    again = recovery(params, "additional")
    own = {name: value for name, value in params.items() if not name.startswith("additional_")}
    turns = regional_sampler(
        _regions(case, recordings),
        _shape(latent),
        recovery=again,
        latent_mask=mask,
        batch_index=index,
        vary_noise=case.get("source") == "impact_current",
        **own,
    )
    return _play(case, recordings, turns, _settings(case), latent)


def _regional_advanced(case: Case, recordings: Recordings) -> Tensor:
    params = dict(case["params"])
    latent, _, index = latent_of(case, recordings)
    again = recovery(params, "additional")
    own = {name: value for name, value in params.items() if not name.startswith("additional_")}
    regions = _regions(case, recordings)
    turns = regional_sampler_advanced(regions, _shape(latent), recovery=again, batch_index=index, **own)
    return _play(case, recordings, turns, _settings(case), latent)


def _two(case: Case, recordings: Recordings) -> Tensor:
    latent, _, _ = latent_of(case, recordings)
    configs = {role: case["samplers"][case[f"{role}_sampler"]] for role in ("base", "mask")}
    runs = [FullRun(config["seed"], config["steps"], config["denoise"]) for config in configs.values()]
    settings = {role: setting(config) for role, config in configs.items()}
    return _play(case, recordings, two_samplers(*runs, recordings.mask(case["mask"])), settings, latent)


def _two_advanced(case: Case, recordings: Recordings) -> Tensor:
    params, mask = case["params"], recordings.mask(case["mask"])
    latent, _, _ = latent_of(case, recordings)
    settings = {role: setting(case["samplers"][case[f"{role}_sampler"]]) for role in ("base", "mask")}
    if case.get("source") == "impact_current":
        turns = regional_sampler([Region("mask", mask)], _shape(latent), base_only_steps=1, vary_noise=True, **params)
    else:
        always = case.get("flags", {}).get("strings_to_bools") is False
        turns = two_advanced_samplers(mask, _shape(latent), always_noise=always, **params)
    return _play(case, recordings, turns, settings, latent)


def _grid(case: Case, recordings: Recordings) -> Tensor:
    params = case["params"]
    latent, mask, index = latent_of(case, recordings)
    own = setting(case["samplers"][case["base_sampler"]])
    # ComfyUI's KSampler reads unknown names as its defaults; our jobs refuse them before they get here.
    own = own._replace(
        sampler=own.sampler if own.sampler in SOLVERS else "euler",
        scheduler=own.scheduler if own.scheduler in COMFYUI_SCHEDULES else "simple",
    )
    turns, cells = mask_grid(
        ksampler_call(params, mask, index),
        _shape(latent),
        recordings.mask(case["mask"])[0, :, :, 0],
        rows=params["rows"],
        columns=params["columns"],
        mode=params["mode"],
        denoise=params["denoise"],
    )
    found, count = walked(recordings, stages(turns, {"base": own}, LEVELS), latent, cells)
    check_cost(case, count)
    return found / SCALING


_NODES: dict[str, Callable[[Case, Recordings], Tensor]] = {
    "RegionalSampler": _regional,
    "RegionalSamplerAdvanced": _regional_advanced,
    "TwoSamplersForMask": _two,
    "TwoAdvancedSamplersForMask": _two_advanced,
    "MaskGridNKSamplersAdvanced": _grid,
}
