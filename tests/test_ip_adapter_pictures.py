"""Jobs with image prompts draw what diffusers' pipelines draw with the same IP-Adapters, images and scales."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.tasks.inputs.image_files import middle_square
from tests.flow_pipelines import flux_shift, simple, with_flow_pipeline
from tests.reference_pipelines import Adapt, Picture, with_pipeline
from tests.tiny_controls import control_picture, tiny_controlnet
from tests.tiny_flow_models import tiny_flux
from tests.tiny_ip_adapters import (
    OTHER,
    PLAIN,
    PLUS,
    SMALL,
    EncoderSizes,
    flux_adapter,
    image_prompt_files,
    save_adapter,
)
from tests.tiny_models import OTHER as OTHER_MODEL
from tests.tiny_models import tiny_sd, tiny_sdxl

pytestmark = [
    pytest.mark.usefixtures("workdir"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers' own
]
WIDTH, HEIGHT = 96, 64


class Used(NamedTuple):
    """An image in a job."""

    file: str
    image: str
    strength: float

    def in_job(self) -> dict[str, Any]:
        return self._asdict()


def job_of(*used: Used, **fields: Any) -> dict[str, Any]:
    job = {
        "model": "model",
        "prompt": "A red Circle, on blue!",
        "width": WIDTH,
        "height": HEIGHT,
        "seed": 3,
        "steps": 4,
    }
    job |= {"cfg": 4.0, "sampler": "euler", "scheduler": "simple"}
    return job | {"image_prompts": [one.in_job() for one in used]} | fields


def drawn(job: dict[str, Any]) -> Picture:
    record = asyncio.run(render.fn(parse_job(job)))
    with Image.open(Path("renders") / Path(record["images"][0]).name) as image:
        return np.asarray(image)


def share_alike(one: Picture, other: Picture) -> float:
    """Of all values, those that differ by at most 2 of 255."""
    return float((np.abs(one.astype(int) - other.astype(int)) <= 2).mean())


def looking_at(*used: Used, sizes: EncoderSizes = SMALL) -> Adapt:
    """A pipeline that attends to images, with diffusers' own code; its image processor needs no torchvision."""

    def adapt(pipeline: Any) -> dict[str, Any]:
        processor = CLIPImageProcessorPil(size=sizes.pixels, crop_size=sizes.pixels)
        pipeline.register_modules(feature_extractor=processor)
        names = [one.file for one in used]
        if hasattr(pipeline, "transformer"):
            pipeline.load_ip_adapter(
                ".",
                names,
                image_encoder_pretrained_model_name_or_path="image_encoder",
                image_encoder_dtype=torch.float32,
            )
        else:
            pipeline.load_ip_adapter(".", "", names, "image_encoder", local_files_only=True)
        pipeline.set_ip_adapter_scale([one.strength for one in used])
        return {"ip_adapter_image": [Image.open(one.image) for one in used]}

    return adapt


FAMILIES: dict[str, Callable[[Path], str]] = {
    "sd": tiny_sd,
    "xl": tiny_sdxl,
    "xl, other sizes": lambda folder: tiny_sdxl(folder, 1, OTHER_MODEL),
}
SD_USES = {
    "plain": [Used(PLAIN, "red.png", 0.7)],
    "plus": [Used(PLUS, "blue.png", 1.0)],
    "two adapters": [Used(PLAIN, "red.png", 0.5), Used(PLUS, "blue.png", 0.8)],
}


@pytest.mark.parametrize("uses", SD_USES.values(), ids=SD_USES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_unet_draws_what_the_pipeline_draws(family: str, uses: list[Used]) -> None:
    """Negative prompts attend to what stands for no image, as they do there."""
    FAMILIES[family](Path("model"))
    sizes = OTHER if "other" in family else SMALL
    image_prompt_files(Path(), "model", sizes)
    job = job_of(*uses)
    ours = drawn(job)
    assert ours.std() > 20, "there is something to see"
    assert share_alike(ours, with_pipeline(job, adapt=looking_at(*uses, sizes=sizes))) >= 0.999
    for changed in (job_of(), job_of(*[one._replace(image="other.png") for one in uses])):
        Image.new("RGB", (60, 60), "white").save("other.png")
        assert share_alike(ours, drawn(changed)) < 0.98, "the comparison would see a mistake"


def test_several_images_of_one_adapter_add_up() -> None:
    tiny_sd(Path("model"))
    image_prompt_files(Path(), "model")
    uses = [Used(PLAIN, "red.png", 0.6), Used(PLAIN, "blue.png", 0.6)]
    ours = drawn(job_of(*uses))
    # diffusers counts them as two adapters.
    assert share_alike(ours, with_pipeline(job_of(*uses), adapt=looking_at(*uses))) >= 0.999
    assert share_alike(ours, drawn(job_of(uses[0]))) < 0.98


def test_a_share_of_the_steps() -> None:
    """As diffusers' callbacks do it, which set the scale before each step."""
    tiny_sdxl(Path("model"))
    image_prompt_files(Path(), "model")
    used = Used(PLAIN, "red.png", 1.0)
    scales = [0.0, 1.0, 1.0, 0.0]

    def adapt(pipeline: Any) -> dict[str, Any]:
        asked = looking_at(used)(pipeline)
        pipeline.set_ip_adapter_scale(scales[0])

        def next_scale(pipeline: Any, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            pipeline.set_ip_adapter_scale(scales[min(step + 1, 3)])
            return tensors

        return asked | {"callback_on_step_end": next_scale}

    job = job_of(image_prompts=[used.in_job() | {"start": 0.25, "end": 0.75}])
    ours = drawn(job)
    assert share_alike(ours, with_pipeline(job, adapt=adapt)) >= 0.999
    assert share_alike(ours, drawn(job_of(used))) < 0.98


def test_beside_a_controlnet() -> None:
    tiny_sdxl(Path("model"))
    image_prompt_files(Path(), "model")
    tiny_controlnet("model", "net", 1)
    steering = Image.open(control_picture("edges.png", 1, WIDTH, HEIGHT))
    used = Used(PLAIN, "red.png", 0.7)
    job = job_of(used, controls=[{"file": "net", "image": "edges.png", "strength": 0.7}])
    ours = drawn(job)
    theirs = with_pipeline(
        job,
        "StableDiffusionXLControlNetPipeline",
        {"controlnet": ControlNetModel.from_pretrained("net", local_files_only=True)},
        looking_at(used),
        image=steering,
        controlnet_conditioning_scale=0.7,
    )
    assert share_alike(ours, theirs) >= 0.999
    assert share_alike(ours, drawn(job | {"controls": []})) < 0.98


@pytest.mark.parametrize("model", ["dev", "schnell"])
def test_flux_draws_what_the_pipeline_draws(model: str) -> None:
    schnell = model == "schnell"
    tiny_flux(Path("model"), schnell=schnell)
    image_prompt_files(Path(), "model", flux=True)
    save_adapter(flux_adapter("model", 5, xlabs=True), "xlabs.safetensors")
    uses = [Used(PLAIN, "red.png", 0.8), Used("xlabs.safetensors", "blue.png", 0.5)]
    shift, entries = (1.0, 1000) if schnell else (flux_shift(WIDTH, HEIGHT), 10_000)
    job = job_of(*uses, cfg=1.0 if schnell else 3.5)
    ours = drawn(job)
    asked: dict[str, Any] = {"max_sequence_length": 256} if schnell else {"guidance_scale": 3.5}
    theirs = with_flow_pipeline(job, simple(4, shift, entries), looking_at(*uses), **asked)
    assert ours.std() > 20, "there is something to see"
    assert share_alike(ours, theirs) >= 0.999
    assert share_alike(ours, drawn(job | {"image_prompts": []})) < 0.98


@pytest.mark.parametrize("size", [(70, 50), (50, 71), (32, 32), (31, 900)])
def test_pictures_are_cut_as_clip_s_processor_cuts_them(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    processor = CLIPImageProcessorPil(size=32, crop_size=32, do_rescale=False, do_normalize=False)
    theirs = processor(Image.fromarray(photo), return_tensors="np")["pixel_values"][0]
    ours = middle_square(torch.from_numpy(photo), 32)
    assert (ours.permute(2, 0, 1).numpy() == theirs).all()


def test_of_a_strip_the_middle_is_resized() -> None:
    """All of it would have a thousand million pixels."""
    strip = torch.zeros(2_000_000, 2, 3, dtype=torch.uint8)
    strip[999_990:1_000_010] = torch.tensor([200, 100, 50], dtype=torch.uint8)
    assert (middle_square(strip, 32) == strip[1_000_000, 0]).all()
