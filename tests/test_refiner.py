"""A second network for the last steps: as diffusers' two pipelines one after the other, with regions, after a kill."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.errors import BadInput, BadJob, ModelError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.family import Canvas
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.noise.initial import initial_noise
from prefect_regional_diffusion.sampling_core.schedules import sigma_schedule
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.reference_pipelines import Picture, share_alike
from tests.tiny_models import OTHER, SMALL, Sizes, tiny_refiner, tiny_sd, tiny_sdxl

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers' own
]
STEPS, FIRST = 5, 4
JOB: dict[str, Any] = {
    **{"model": "xl", "prompt": "a red circle", "negative_prompt": "fog", "cfg": 5.0, "steps": STEPS, "seed": 3},
    **{"width": 192, "height": 128, "sampler": "euler", "scheduler": "simple"},
    "refiner": {"model": "refiner", "start": 0.8, "aesthetic_score": 7.0, "negative_aesthetic_score": 1.0},
}
REGION: dict[str, Any] = {"prompt": "a blue square", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}


@pytest.fixture(autouse=True)
def models(workdir: Path) -> None:
    tiny_sdxl(workdir / "xl", 1)
    tiny_refiner(workdir / "refiner", 2)


def drawn(store: str | None = None, checkpoint_steps: int | None = None, **fields: Any) -> Picture:
    record = asyncio.run(render.fn(parse_job(JOB | fields), checkpoint_steps=checkpoint_steps, store=store))
    with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
        return np.asarray(picture)


def with_pipelines(job: dict[str, Any]) -> Picture:
    """The first pipeline ends with a latent that still has the noise of the level at which the second one begins."""
    size = Canvas(job["width"], job["height"])
    levels = open_folder(job["model"]).noise_schedule(size, STEPS)
    sigmas = [level.sigma for level in sigma_schedule(levels, "simple", STEPS)]
    sized = job.get("size_conditioning", {})
    about = {
        "original_size": (sized.get("original_height", size.height), sized.get("original_width", size.width)),
        "crops_coords_top_left": (sized.get("crop_top", 0), sized.get("crop_left", 0)),
    }
    prompts = {name: job[name] for name in ("prompt", "negative_prompt")}
    told: dict[str, Any] = {**prompts, "guidance_scale": job["cfg"], **about}
    base = diffusers.StableDiffusionXLPipeline.from_pretrained(job["model"], local_files_only=True)
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained("refiner", local_files_only=True)
    for pipeline in (base, refiner):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    noise = initial_noise(job["seed"], (1, 4, size.height // 8, size.width // 8))
    with torch.inference_mode():
        half: dict[str, Any] = {}

        def keep(_pipeline: object, step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == FIRST - 1:
                half["latents"] = tensors["latents"].clone()
            return tensors

        base(
            **told,
            width=size.width,
            height=size.height,
            latents=noise,
            sigmas=sigmas,
            output_type="latent",
            callback_on_step_end=keep,  # pyright: ignore[reportArgumentType] - they document this one
        )
        scores = {name: job["refiner"][name] for name in ("aesthetic_score", "negative_aesthetic_score")}
        conditioned = refiner.encode_prompt(job["prompt"], negative_prompt=job["negative_prompt"])
        ids = [(*about["original_size"], *about["crops_coords_top_left"], score) for score in scores.values()]
        latents = half["latents"]
        for here, there in zip(sigmas[FIRST:-1], sigmas[FIRST + 1 :], strict=True):
            predictions = [
                refiner.unet(
                    latents / (here**2 + 1) ** 0.5,
                    levels.timestep_of(here),
                    encoder_hidden_states=conditioned[i],
                    added_cond_kwargs={"text_embeds": conditioned[i + 2], "time_ids": torch.tensor([ids[i]])},
                ).sample
                for i in (0, 1)
            ]
            positive, negative = predictions
            noise_prediction = negative + job["cfg"] * (positive - negative)
            latents = latents + noise_prediction * (there - here)
        pixels = base.vae.decode(latents / base.vae.config.scaling_factor).sample
    return ((pixels[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy()


@pytest.mark.parametrize("sizes", [SMALL, OTHER], ids=["small", "other"])
@pytest.mark.parametrize("fields", [{}, {"size_conditioning": {"original_width": 512, "crop_top": 64}}], ids=str)
def test_it_draws_what_the_two_networks_of_diffusers_draw(sizes: Sizes, fields: dict[str, Any], workdir: Path) -> None:
    tiny_sdxl(workdir / "xl", 5, sizes)
    tiny_refiner(workdir / "refiner", 6, sizes)
    assert share_alike(drawn(**fields), with_pipelines(JOB | fields)) >= 0.999


EARLY = JOB["refiner"] | {"start": 0.2}


@pytest.mark.parametrize(
    "change",
    [
        {"refiner": None},
        {"refiner": JOB["refiner"] | {"start": 0.6}},
        {"refiner": EARLY | {"aesthetic_score": 1.0}},
        {"refiner": EARLY | {"negative_aesthetic_score": 9.0}},
        {"refiner": EARLY, "size_conditioning": {"original_width": 32}},
        {"refiner": EARLY, "size_conditioning": {"crop_left": 100}},
    ],
    ids=str,
)
def test_each_part_of_it_shows(change: dict[str, Any]) -> None:
    assert share_alike(drawn(store=".regional/store/other", **change), drawn(refiner=EARLY)) < 1


def test_sizes_that_are_the_canvas_own_change_nothing() -> None:
    stated = prepare(parse_job(JOB | {"size_conditioning": {"original_width": 192, "original_height": 128}}))
    assert stated.job_hash == prepare(parse_job(JOB)).job_hash


def test_regions_are_refined_and_a_killed_run_goes_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONAL_KEEP", "all")
    job: dict[str, Any] = {
        "regions": [REGION, REGION | {"mask": {"x": 0.5, "y": 0, "width": 0.5, "height": 1}, "cfg": 1.0}]
    }
    whole = drawn(store=".regional/store/whole", **job)
    assert share_alike(whole, drawn(store=".regional/store/unrefined", **job, refiner=None)) < 0.99
    drawn(store=".regional/store/parts", checkpoint_steps=1, **job)
    states = sorted(Path(".regional/store/parts/latents").glob("*/*.safetensors"))
    assert len(states) == STEPS
    for first in range(STEPS):
        for picture in Path(".regional/store/parts").rglob("*.png"):
            picture.unlink()
        for state in states:
            if int(state.stem) > first and state.exists():
                state.unlink()
        assert np.array_equal(drawn(store=".regional/store/parts", checkpoint_steps=1, **job), whole), first


def test_it_costs_no_row_more() -> None:
    refined, plain = (prepare(parse_job(JOB | {"refiner": refiner})) for refiner in (JOB["refiner"], None))
    assert refined.cost == plain.cost
    assert {key.model for key in refined.run.prompts} == {"xl", "refiner"}


def test_sequential_composition_has_no_second_model() -> None:
    with pytest.raises(BadJob, match=r"^refiner: \{'model': 'y'\} is not allowed; allowed: left out with sequential"):
        parse_job(JOB | {"composition": "sequential", "regions": [REGION], "refiner": {"model": "y"}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "refiner", "refiner": None}, r"^model: 'refiner' .*goes into refiner\.model"),
        ({"regions": [REGION | {"model": "refiner"}]}, r"^regions\.0\.model: 'refiner' .*goes into refiner\.model"),
        ({"refiner": {"model": "refiner", "start": 0.9}}, r"^refiner\.start: 0\.9 .*at most 0\.8: there are 5 steps"),
        (
            {"model": "sd", "size_conditioning": {"crop_top": 8}, "refiner": None},
            r"^size_conditioning: .*no input of Sta",
        ),
        ({"refiner": {"model": "away"}}, r"^refiner\.model: .*away does not exist"),
        ({"refiner": {"model": "sd"}}, r"^refiner\.model: .*sd has other latents"),
    ],
)
def test_what_cannot_be_done_is_one_line(fields: dict[str, Any], message: str, workdir: Path) -> None:
    tiny_sd(workdir / "sd")
    with pytest.raises((BadInput, ModelError), match=message):
        prepare(parse_job(JOB | fields))
