"""Models of each family draw what diffusers' own pipeline draws with the same noise, sigmas and guidance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from tests.reference_pipelines import Picture, share_alike, with_pipeline
from tests.tiny_models import OTHER, SMALL, Sizes, tiny_sd, tiny_sdxl

pytestmark = [
    pytest.mark.usefixtures("workdir"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers' own
]

V = {"prediction_type": "v_prediction"}
KINDS: dict[str, Callable[[Path, int, Sizes], str]] = {
    "sd1": tiny_sd,
    "sd1 v": lambda *of: tiny_sd(*of, **V),
    "sd2": lambda *of: tiny_sd(*of, sd2=True),
    "sd2 v": lambda *of: tiny_sd(*of, sd2=True, **V),
    "sd2 zero SNR": lambda *of: tiny_sd(*of, sd2=True, **V, rescale_betas_zero_snr=True),
    "sdxl": tiny_sdxl,
    "sdxl v zero SNR": lambda *of: tiny_sdxl(*of, **V, rescale_betas_zero_snr=True),
    "sdxl encodes empty": lambda *of: tiny_sdxl(*of, zeros=False),
    "sdxl mean and std": lambda *of: tiny_sdxl(
        *of, vae={"latents_mean": [0.5, -0.25, 0.0, 1.0], "latents_std": [1.5, 0.75, 1.0, 1.25]}
    ),
}


def asked(**fields: Any) -> dict[str, Any]:
    """Fields of a job. The canvas is no square, so that height and width are told apart."""
    job = {"model": "model", "prompt": "A red Circle, on blue!", "width": 96, "height": 64, "seed": 3, "steps": 5}
    return job | {"cfg": 4.0, "sampler": "euler", "scheduler": "simple"} | fields


def drawn(**fields: Any) -> Picture:
    """The picture [height, width, 3] that the flow draws."""
    record = asyncio.run(render.fn(parse_job(asked(**fields))))
    with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize(("seed", "sizes"), [(0, SMALL), (1, OTHER)], ids=["small", "other"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_draws_what_the_pipeline_draws(kind: str, seed: int, sizes: Sizes) -> None:
    KINDS[kind](Path("model"), seed, sizes)
    ours = drawn(seed=seed)
    assert ours.std() > 20, "there is something to see"
    assert share_alike(ours, with_pipeline(asked(seed=seed))) >= 0.999


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    "fields",
    [
        {"sampler": "dpmpp_2m", "steps": 7},
        {"negative_prompt": "blurred, ugly"},
        {"cfg": 1.0},
        {"prompt": ""},
        {"width": 64, "height": 96, "steps": 1},
        {"prompt": "long " * 60, "negative_prompt": "of many words " * 20},
    ],
    ids=str,
)
def test_whatever_is_asked(kind: str, fields: dict[str, Any]) -> None:
    KINDS[kind](Path("model"), 2, SMALL)
    assert share_alike(drawn(**fields), with_pipeline(asked(**fields))) >= 0.999


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_comparison_would_see_a_mistake(kind: str) -> None:
    """What is asked shows: were any of it lost, pictures would not be alike."""
    KINDS[kind](Path("model"), 0, SMALL)
    plain = drawn()
    for changes in ({"prompt": "A blue circle"}, {"cfg": 4.5}, {"negative_prompt": "many words of it"}, {"seed": 4}):
        assert share_alike(plain, drawn(**changes)) < 0.98, changes
