"""Recorded noise of the original nodes, on our code."""

from __future__ import annotations

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.noise.brownian import BrownianNoise
from prefect_regional_diffusion.sampling_core.noise.initial import (
    initial_noise,
    original_mix_noise,
    original_touch_noise,
)
from tests.recordings import Case, Recordings


def noise(case: Case, recordings: Recordings) -> Tensor:
    params = case["params"]
    shape, seed = tuple(params["shape"]), params["seed"]
    match case["unit"]:
        case "prepare_noise":
            return initial_noise(seed, shape, params.get("batch_index"))
        case "mix_noise":
            pair = initial_noise(seed, shape), initial_noise(params["seed_to"], shape)
            return original_mix_noise(*pair, params["strength"], params["method"])
        case "touch_noise":
            varied = initial_noise(seed, shape)
            for region in case["regions"]:
                variation = region["variation_seed"], region["variation_strength"], region["variation_method"]
                varied = original_touch_noise(varied, recordings.mask(region["mask"]), *variation)
            return varied
        case "brownian":
            path = BrownianNoise(shape, seed, params["sigma_min"], params["sigma_max"])
            return torch.stack([path.increment(*pair) for pair in params["pairs"]])
        case unit:
            raise NotImplementedError(unit)
