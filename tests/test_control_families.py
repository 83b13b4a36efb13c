"""Jobs with ControlNets and T2I-Adapters draw what diffusers' pipelines for these draw, without regions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import ControlNetModel, T2IAdapter
from PIL import Image

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from tests.reference_pipelines import Picture, with_pipeline
from tests.tiny_controls import control_picture, tiny_adapter, tiny_controlnet
from tests.tiny_models import OTHER, SMALL, Sizes, tiny_sd, tiny_sdxl

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers' own
    pytest.mark.filterwarnings("ignore:.*decode_latents:FutureWarning"),  # of its pipeline for adapters
]

WIDTH, HEIGHT = 96, 64
FIRST_THREE = (True, True, False)
"""Stable Diffusion 1 has attention on all levels but the last."""


@pytest.fixture(autouse=True)
def pictures(workdir: Path) -> None:
    for number in (1, 2):
        control_picture(f"{number}.png", number, WIDTH, HEIGHT)


def asked(**fields: Any) -> dict[str, Any]:
    job = {
        "model": "model",
        "prompt": "A red Circle, on blue!",
        "width": WIDTH,
        "height": HEIGHT,
        "seed": 3,
        "steps": 5,
    }
    return job | {"cfg": 4.0, "sampler": "euler", "scheduler": "simple"} | fields


def drawn(**fields: Any) -> Picture:
    record = asyncio.run(render.fn(parse_job(asked(**fields))))
    with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
        return np.asarray(picture)


def assert_alike(ours: Picture, theirs: Picture, plain: Picture) -> None:
    """At most 2 of 255 apart in 99.9 % of the values, and far from the picture without a control."""
    assert (np.abs(ours.astype(int) - theirs.astype(int)) <= 2).mean() >= 0.999
    assert np.abs(ours.astype(int) - plain.astype(int)).mean() > 5


def image(number: int) -> Image.Image:
    with Image.open(f"{number}.png") as picture:
        return picture.convert("RGB")


CONTROLNET_PIPELINES: dict[str, tuple[Callable[..., str], str]] = {
    "sd1": (
        lambda folder, sizes: tiny_sd(folder, sizes=sizes, attends=FIRST_THREE),
        "StableDiffusionControlNetPipeline",
    ),
    "sd2": (lambda folder, sizes: tiny_sd(folder, sizes=sizes, sd2=True), "StableDiffusionControlNetPipeline"),
    "sdxl": (lambda folder, sizes: tiny_sdxl(folder, sizes=sizes), "StableDiffusionXLControlNetPipeline"),
}


@pytest.mark.parametrize("sizes", [SMALL, OTHER], ids=["small", "other"])
@pytest.mark.parametrize("kind", CONTROLNET_PIPELINES)
def test_a_controlnet_steers_as_in_its_pipeline(kind: str, sizes: Sizes) -> None:
    make, pipeline = CONTROLNET_PIPELINES[kind]
    make(Path("model"), sizes)
    tiny_controlnet("model", "net", 1)
    control = {"file": "net", "image": "1.png", "strength": 0.7}
    theirs = with_pipeline(
        asked(),
        pipeline,
        {"controlnet": ControlNetModel.from_pretrained("net", local_files_only=True)},
        image=image(1),
        controlnet_conditioning_scale=0.7,
    )
    assert_alike(drawn(controls=[control]), theirs, drawn())


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_several_in_windows_of_their_own_add_up_as_in_the_pipeline(kind: str) -> None:
    make, pipeline = CONTROLNET_PIPELINES[kind]
    make(Path("model"), SMALL)
    nets = [tiny_controlnet("model", f"net {seed}", seed) for seed in (1, 2)]
    windows: list[tuple[float, float]] = [(0.0, 0.61), (0.2, 1.0)]
    controls = [
        {"file": net, "image": f"{i + 1}.png", "strength": 0.5 + i, "start": start, "end": end}
        for i, (net, (start, end)) in enumerate(zip(nets, windows, strict=True))
    ]
    theirs = with_pipeline(
        asked(negative_prompt="blurred"),
        pipeline,
        {"controlnet": [ControlNetModel.from_pretrained(net, local_files_only=True) for net in nets]},
        image=[image(1), image(2)],
        controlnet_conditioning_scale=[0.5, 1.5],
        control_guidance_start=[start for start, _ in windows],
        control_guidance_end=[end for _, end in windows],
    )
    job = {"negative_prompt": "blurred"}
    assert_alike(drawn(controls=controls, **job), theirs, drawn(**job))


ADAPTERS: dict[str, tuple[Callable[[Path], str], str, str, tuple[int, ...], int]] = {
    "sd1 full": (
        lambda folder: tiny_sd(folder, attends=FIRST_THREE),
        *("StableDiffusionAdapterPipeline", "full_adapter", (32, 64, 64), 3),
    ),
    "sd1 full, grey": (
        lambda folder: tiny_sd(folder, attends=FIRST_THREE),
        *("StableDiffusionAdapterPipeline", "full_adapter", (32, 64, 64), 1),
    ),
    "sd1 light": (
        lambda folder: tiny_sd(folder, attends=FIRST_THREE),
        *("StableDiffusionAdapterPipeline", "light_adapter", (32, 64), 3),
    ),
    "sdxl": (tiny_sdxl, "StableDiffusionXLAdapterPipeline", "full_adapter_xl", (32, 64, 64, 64), 3),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_t2i_adapter_steers_as_in_its_pipeline(kind: str) -> None:
    make, pipeline, adapter_type, channels, seen = ADAPTERS[kind]
    make(Path("model"))
    tiny_adapter("adapter", 3, adapter_type, channels, in_channels=seen)
    control = {"file": "adapter", "image": "1.png", "strength": 4.0}
    theirs = with_pipeline(
        asked(),
        pipeline,
        {"adapter": T2IAdapter.from_pretrained("adapter", local_files_only=True)},
        image=image(1).convert("L" if seen == 1 else "RGB"),
        adapter_conditioning_scale=4.0,
    )
    assert_alike(drawn(controls=[control]), theirs, drawn())
