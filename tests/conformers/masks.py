"""Recorded mask functions of the original nodes, on our code."""

from __future__ import annotations

from torch import Tensor

from prefect_regional_diffusion.sampling_core.comfyui import masks
from tests.recordings import Case, Recordings


def prepare_mask(case: Case, recordings: Recordings) -> Tensor:
    return masks.noise_mask(recordings.mask(case["mask"]), tuple(case["params"]["latent_shape"]))


def inv_mask(case: Case, recordings: Recordings) -> Tensor:
    return masks.base_mask([recordings.mask(name) for name in case["masks"]])


def erosion(case: Case, recordings: Recordings) -> Tensor:
    params, mask = case["params"], recordings.mask(case["mask"])
    if params["impl"] == "impact.core.erosion_mask":
        return masks.grown_in_mask_pixels(mask, params["overlap_factor"])
    _, _, rows, columns = params["latent_shape"]
    return masks.grown_in_latent_cells(mask, (rows, columns), params["overlap_factor"])


def composite(case: Case, recordings: Recordings) -> Tensor:
    mask = case["mask"] and recordings.mask(case["mask"])
    source = recordings.latent(case["source"])
    return masks.composite(recordings.latent(case["destination"]), source, mask=mask, **case["params"])
