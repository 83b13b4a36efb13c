"""Keys are what determines the picture: every field of every model is hashed, inherited, or declared inert."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest
import torch
from PIL import Image as Photograph
from pydantic import BaseModel
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.cache_keys import segment_keys
from prefect_regional_diffusion.sampling_core.job.adapters import Control, ImagePrompt, Lora
from prefect_regional_diffusion.sampling_core.job.comfyui_node import (
    NODES,
    MaskGridNKSamplersAdvanced,
    RegionalSampler,
    RegionalSamplerAdvanced,
    TwoAdvancedSamplersForMask,
    TwoSamplersForMask,
)
from prefect_regional_diffusion.sampling_core.job.grid_job import Cell, GridJob, cells
from prefect_regional_diffusion.sampling_core.job.mask_shapes import (
    MASK_KINDS,
    ColorMap,
    Ellipse,
    Image,
    Polygon,
    Rectangle,
)
from prefect_regional_diffusion.sampling_core.job.parsing import parse_grid, parse_job
from prefect_regional_diffusion.sampling_core.job.refiner import Refiner, SizeConditioning
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.job.shared_fields import Region
from prefect_regional_diffusion.sampling_core.job.window import CropWindow
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.planning.canonical_job import INERT
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.tiny_controls import tiny_controlnet
from tests.tiny_ip_adapters import save_adapter, tiny_image_encoder, unet_adapter
from tests.tiny_loras import save_lora, tiny_lora
from tests.tiny_models import tiny_refiner, tiny_sdxl

Data = dict[str, Any]

NOTHING = object()
LEFT: Data = {"x": 0, "y": 0, "width": 0.5, "height": 1}
QUARTER: Data = {"x": 0, "y": 0, "width": 0.5, "height": 0.5}
REGION: Data = {"prompt": "region", "mask": LEFT}
OVER: Data = {"prompt": "over", "mask": {"x": 0.25, "y": 0, "width": 0.5, "height": 1}}
VARIED: Data = REGION | {"variation_strength": 0.5}
JOB: Data = {"prompt": "base", "width": 64, "height": 64, "steps": 6, "base_only_steps": 2, "regions": [REGION]}
TWO_REGIONS = JOB | {"regions": [REGION, OVER]}
STYLED = JOB | {"loras": [{"file": "style.safetensors"}]}
CONTROL: Data = {"file": "net", "image": "one.png"}
STEERED = JOB | {"controls": [CONTROL]}
STEERED_REGION = JOB | {"regions": [REGION | {"controls": [CONTROL]}]}
LOOKED_AT: Data = {"file": "adapter.safetensors", "image": "one.png"}
OTHER_IMAGE, SAME_IMAGE = LOOKED_AT | {"image": "other.png"}, LOOKED_AT | {"image": "one again.png"}
LOOKING = JOB | {"image_prompts": [LOOKED_AT]}
SIZED = JOB | {"model": "xl", "size_conditioning": {"original_width": 32}}
REFINED = JOB | {"model": "xl", "refiner": {"model": "refiner"}}
WINDOWED = JOB | {"width": 256, "regions": [REGION | {"window": {"margin": 8}}]}
STARTED = JOB | {"init_image": "one.png", "denoise": 0.5}


def node(name: str, **fields: Any) -> Data:
    """JOB for an original node."""
    job = JOB | {"composition": "sequential", "sampler": "euler", "node": {"name": name} | fields}
    if name != "RegionalSampler":
        job.pop("base_only_steps")
    return job | ({"regions": []} if name.startswith("MaskGrid") else {})


def masked(**mask: Any) -> Data:
    """JOB with another mask."""
    return JOB | {"regions": [REGION | {"mask": mask}]}


REGIONAL = node("RegionalSampler")
SECOND_SEED = node("RegionalSampler", seed_2nd_mode="fixed")
RECOVERED = REGIONAL | {"sampler": "uni_pc"}
ADVANCED = node("RegionalSamplerAdvanced")
RECOVERED_ADVANCED = ADVANCED | {"sampler": "uni_pc"}
LEFTOVER = node("RegionalSamplerAdvanced", restore_latent=False, end_at_step=4)
TWO_SAMPLERS = node("TwoSamplersForMask")
TWO_ADVANCED = node("TwoAdvancedSamplersForMask")
GRID_OF_MASKS = node("MaskGridNKSamplersAdvanced", columns=2, tile=QUARTER)
LEFTOVER_GRID = node("MaskGridNKSamplersAdvanced", columns=2, end_at_step=4)
RECTANGLE = masked(**QUARTER)
ELLIPSE = masked(center_x=0.5, center_y=0.5, radius_x=0.25, radius_y=0.25)
POLYGON = masked(points=[[0, 0], [1, 0], [0, 1]])
IMAGE = masked(image="one.png")
COLOR_MAP = masked(color_map="one.png", color=[255, 0, 0])

GRID: Data = {"job": JOB, "cells": [{"row": 0, "column": 0, "prompt": "cell"}]}
FORKED = GRID | {"mode": "Sample then Fork"}


class Other(NamedTuple):
    """Another value of a field, in a job or grid in which the field counts.

    `same` is a value that draws what the field draws where it is left out: the one that is inherited.
    """

    value: Any
    base: Data = JOB
    same: Any = NOTHING


OTHERS: dict[type[BaseModel], dict[str, Other]] = {
    RenderJob: {
        "model": Other("other"),
        "prompt": Other("other"),
        "negative_prompt": Other("other"),
        "prompt_syntax": Other("comfyui"),
        "width": Other(128),
        "height": Other(128),
        "seed": Other(1),
        "steps": Other(7),
        "base_only_steps": Other(3, {key: JOB[key] for key in JOB if key != "base_only_steps"}, same=1),
        "denoise": Other(0.5),
        "sampler": Other("euler"),
        "scheduler": Other("normal"),
        "cfg": Other(2.0),
        "composition": Other("sequential"),
        "regions": Other([]),
        "batch_size": Other(2),
        "batch_index": Other([1], JOB | {"batch_size": 2}),
        "overlap": Other("order", TWO_REGIONS),
        "arrangement": Other("attention", TWO_REGIONS),
        "window": Other({"margin": 8}, JOB | {"width": 256}),
        "noise": Other("comfyui", JOB | {"sampler": "euler_ancestral"}),
        "init_image": Other("other.png", STARTED),
        "init_fit": Other("stretch", STARTED),
        "protect": Other([LEFT], STARTED),
        "loras": Other([{"file": "other.safetensors"}], STYLED),
        "controls": Other([CONTROL | {"file": "other net"}], STEERED),
        "image_prompts": Other([OTHER_IMAGE], LOOKING),
        "size_conditioning": Other({"crop_left": 8}, SIZED),
        "refiner": Other({"model": "refiner", "start": 0.5}, REFINED),
        "node": Other({"name": "RegionalSamplerAdvanced"}, node("TwoSamplersForMask")),
    },
    Region: {
        "name": Other("for people"),
        "prompt": Other("other"),
        "negative_prompt": Other("other", JOB | {"negative_prompt": "job's"}, same="job's"),
        "mask": Other(QUARTER),
        "sampler": Other("euler", same="dpmpp_2m"),
        "cfg": Other(2.0, same=1.5),
        "weight": Other(2.0, TWO_REGIONS),
        "feather": Other(16),
        "grow": Other(16),
        "scheduler": Other("normal", REGIONAL, same="karras"),
        "sigma_factor": Other(0.9, REGIONAL),
        "variation_seed": Other(3, JOB | {"regions": [VARIED]}),
        "variation_strength": Other(0.5),
        "variation_method": Other("slerp", JOB | {"regions": [VARIED]}),
        "model": Other("other", same="embedded"),
        "loras": Other([{"file": "other.safetensors"}], STYLED, same=[{"file": "again.safetensors"}]),
        "controls": Other(
            [CONTROL | {"file": "other net"}], STEERED, same=[{"file": "net again", "image": "one again.png"}]
        ),
        "image_prompts": Other([OTHER_IMAGE], LOOKING, same=[SAME_IMAGE]),
        "start_at_step": Other(4, same=2),
        "end_at_step": Other(4),
        "window": Other({"margin": 8}, JOB | {"width": 256, "window": "auto"}, same="auto"),
    },
    CropWindow: {
        "margin": Other(40, WINDOWED),
        "full_steps": Other(3, WINDOWED),
    },
    ImagePrompt: {
        "file": Other("plus.safetensors", LOOKING, same="adapter again.safetensors"),
        "image": Other("other.png", LOOKING, same="one again.png"),
        "strength": Other(0.5, LOOKING),
        "start": Other(0.5, LOOKING),
        "end": Other(0.5, LOOKING),
        "image_encoder": Other("encoder", LOOKING, same="image_encoder again"),
    },
    Lora: {
        "file": Other("other.safetensors", STYLED, same="again.safetensors"),
        "strength": Other(0.5, STYLED),
        "text_strength": Other(0.5, STYLED, same=1.0),
    },
    Control: {
        "file": Other("other net", STEERED_REGION, same="net again"),
        "image": Other("other.png", STEERED_REGION, same="one again.png"),
        "strength": Other(0.5, STEERED_REGION),
        "start": Other(0.5, STEERED_REGION),
        "end": Other(0.5, STEERED_REGION),
        "fit": Other("stretch", STEERED_REGION),
        "place": Other("region", STEERED_REGION),
    },
    SizeConditioning: {
        "original_width": Other(16, SIZED),
        "original_height": Other(16, SIZED, same=64),
        "crop_left": Other(8, SIZED),
        "crop_top": Other(8, SIZED),
    },
    Refiner: {
        "model": Other("other refiner", REFINED, same="refiner again"),
        "start": Other(0.5, REFINED),
        "aesthetic_score": Other(5.0, REFINED, same=6.0),
        "negative_aesthetic_score": Other(5.0, REFINED, same=2.5),
    },
    RegionalSampler: {
        "overlap_factor": Other(40, REGIONAL),
        "restore_latent": Other(value=False, base=REGIONAL),
        "seed_2nd": Other(1, SECOND_SEED),
        "seed_2nd_mode": Other("fixed", REGIONAL),
        "additional_mode": Other("DISABLE", RECOVERED),
        "additional_sampler": Other("euler", RECOVERED),
        "additional_sigma_ratio": Other(0.5, RECOVERED),
        "vary_noise": Other(value=True, base=SECOND_SEED),
        "sigma_factor": Other(0.9, REGIONAL),
    },
    RegionalSamplerAdvanced: {
        "overlap_factor": Other(40, ADVANCED),
        "restore_latent": Other(value=False, base=ADVANCED),
        "additional_mode": Other("DISABLE", RECOVERED_ADVANCED),
        "additional_sampler": Other("euler", RECOVERED_ADVANCED),
        "additional_sigma_ratio": Other(0.5, RECOVERED_ADVANCED),
        "add_noise": Other(value=False, base=ADVANCED),
        "start_at_step": Other(1, ADVANCED),
        "end_at_step": Other(4, ADVANCED, same=6),
        "return_with_leftover_noise": Other(value=True, base=LEFTOVER),
        "sigma_factor": Other(0.9, ADVANCED),
    },
    TwoSamplersForMask: {
        "mask_seed": Other(1, TWO_SAMPLERS | {"seed": 3}, same=3),
        "mask_steps": Other(7, TWO_SAMPLERS, same=6),
        "mask_denoise": Other(0.5, TWO_SAMPLERS | {"denoise": 0.6}, same=0.6),
    },
    TwoAdvancedSamplersForMask: {
        "overlap_factor": Other(4, TWO_ADVANCED),
        "sigma_factor": Other(0.9, TWO_ADVANCED),
    },
    MaskGridNKSamplersAdvanced: {
        "add_noise": Other(value=False, base=GRID_OF_MASKS),
        "start_at_step": Other(1, GRID_OF_MASKS),
        "end_at_step": Other(4, GRID_OF_MASKS),
        "return_with_leftover_noise": Other(value=True, base=LEFTOVER_GRID),
        "rows": Other(2, GRID_OF_MASKS),
        "columns": Other(4, GRID_OF_MASKS),
        "mode": Other("Fork then Sample", GRID_OF_MASKS),
        "tile": Other(LEFT, GRID_OF_MASKS),
    },
    Rectangle: {
        "x": Other(0.25, RECTANGLE),
        "y": Other(0.25, RECTANGLE),
        "width": Other(0.75, RECTANGLE),
        "height": Other(0.75, RECTANGLE),
    },
    Ellipse: {
        "center_x": Other(0.375, ELLIPSE),
        "center_y": Other(0.375, ELLIPSE),
        "radius_x": Other(0.375, ELLIPSE),
        "radius_y": Other(0.375, ELLIPSE),
    },
    Polygon: {"points": Other([[0, 0], [1, 0], [1, 1]], POLYGON)},
    Image: {"image": Other("other.png", IMAGE), "fit": Other("stretch", IMAGE)},
    ColorMap: {
        "color_map": Other("other.png", COLOR_MAP),
        "color": Other([0, 255, 0], COLOR_MAP),
        "tolerance": Other(60, COLOR_MAP),
        "fit": Other("stretch", COLOR_MAP),
    },
    GridJob: {
        "job": Other(JOB | {"prompt": "other"}, GRID),
        "rows": Other(3, GRID),
        "columns": Other(3, GRID),
        "mode": Other("Sample then Fork", GRID),
        "fork_at_step": Other(4, FORKED, same=3),
        "cells": Other([], GRID),
    },
    Cell: {
        "row": Other(1, GRID),
        "column": Other(1, GRID),
        "prompt": Other("other", {"job": JOB, "mode": "Sample then Fork", "cells": [{"row": 0, "column": 0}]}, "base"),
        "negative_prompt": Other("other", GRID, same=""),
        "seed": Other(5, GRID, same=0),
    },
}
"""For each field of each model, another value, which draws another picture. Of fields in INERT: the same one."""

PLACES: dict[type[BaseModel], tuple[str | int, ...]] = {
    **{RenderJob: (), Region: ("regions", 0), GridJob: (), Cell: ("cells", 0)},
    Lora: ("loras", 0),
    Control: ("regions", 0, "controls", 0),
    ImagePrompt: ("image_prompts", 0),
    SizeConditioning: ("size_conditioning",),
    Refiner: ("refiner",),
    CropWindow: ("regions", 0, "window"),
    **dict.fromkeys(NODES, ("node",)),
    **dict.fromkeys(MASK_KINDS.values(), ("regions", 0, "mask")),
}
"""Where a model is in the data of its base."""


class Keys(NamedTuple):
    """What names the pictures of a job or a grid, by cell, and the inputs that the mask keys stand for."""

    jobs: dict[str, str]
    masks: dict[str, str]
    latents: dict[str, str]
    inputs: dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images that are twice as wide as the canvas, a model with other numbers, and adapters."""
    folder = tmp_path_factory.mktemp("files")
    photo = np.full((128, 256, 3), 255, dtype=np.uint8)
    photo[:, :100] = [255, 0, 0]
    photo[64:, :100] = [200, 40, 40]
    photo[64:, 100:150] = [0, 255, 0]
    Photograph.fromarray(photo).save(folder / "one.png")
    Photograph.fromarray(photo).save(folder / "one again.png")
    photo[:20] = [255, 0, 0]
    Photograph.fromarray(photo).save(folder / "other.png")
    shutil.copytree(EMBEDDED, folder / "other")
    config = folder / "other" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"steps_offset": 7}))
    for name, seed in {"style": 1, "again": 1, "other": 2}.items():
        save_lora(tiny_lora(EMBEDDED, seed, ("unet", "text_encoder"), "attn").kohya(), folder / f"{name}.safetensors")
    for name, seed in {"net": 1, "net again": 1, "other net": 2}.items():
        tiny_controlnet(EMBEDDED, folder / name, seed)
    for name, plus in {"adapter": False, "adapter again": False, "plus": True}.items():
        save_adapter(unet_adapter(EMBEDDED, plus=plus), folder / f"{name}.safetensors")
    for name, seed in {"image_encoder": 0, "image_encoder again": 0, "encoder": 1}.items():
        tiny_image_encoder(folder / name, seed)
    tiny_sdxl(folder / "xl")
    for name, seed in {"refiner": 1, "refiner again": 1, "other refiner": 2}.items():
        tiny_refiner(folder / name, seed)
    return folder


@pytest.fixture(autouse=True)
def among_the_files(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)


def keys(data: Data) -> Keys:
    """The keys of a job, or of each cell of a grid, from its data."""
    return _keys(json.dumps(data))


def jobs_of(data: Data) -> dict[str, RenderJob]:
    """The cells of a grid by name, or a job alone."""
    return {cell.name: cell.job for cell in cells(parse_grid(data))} if "job" in data else {"": parse_job(data)}


@cache
def _keys(text: str) -> Keys:
    data = json.loads(text)
    found = Keys({}, {}, {}, {})
    for name, job in jobs_of(data).items():
        prepared = prepare(job)
        found.jobs[name], found.masks[name] = prepared.job_hash, prepared.inputs.mask_hash
        found.inputs[name] = prepared.inputs.tensors
        run = prepared.run
        if "picture" in prepared.inputs.tensors:
            # In the place of what the model's encoder makes of it.
            pixels = prepared.inputs.tensors["picture"].float().movedim(-1, 0)[None]
            small = torch.nn.functional.avg_pool2d(pixels, prepared.folder.facts.vae_scale_factor)
            run = run.with_init_latent(torch.cat([small, small[:, :1]], dim=1))
        context = prepared.inputs.model_keys[job.model].digest
        found.latents[name] = segment_keys(run.segments(), context, prepared.inputs.model_keys)[-1].name
    return found


def changed(model: type[BaseModel], field: str, value: Any, base: Data) -> Data:
    """The base with another value in one field of a model."""
    data = deepcopy(base)
    place: Any = data
    for step in PLACES[model]:
        place = place[step]
    place[field] = value
    return data


def models_in(annotation: Any) -> set[type[BaseModel]]:
    """The models that a type is made of, and those that their fields are made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}.union(*(models_in(field.annotation) for field in annotation.model_fields.values()))
    return set[type[BaseModel]]().union(*map(models_in, get_args(annotation)))


def has_one_value(model: type[BaseModel], field: str) -> bool:
    """Whether a field only tells the kind of its model."""
    annotation = model.model_fields[field].annotation
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


FIELDS = [
    pytest.param(model, field, id=f"{model.__name__}.{field}")
    for model in sorted(models_in(RenderJob) | models_in(GridJob), key=lambda model: model.__name__)
    for field in model.model_fields
    if not has_one_value(model, field)
]


@pytest.mark.parametrize(("model", "field"), FIELDS)
def test_every_field_is_hashed_inherited_or_declared_inert(model: type[BaseModel], field: str) -> None:
    other = OTHERS.get(model, {}).get(field)
    if other is None:
        pytest.fail(
            f"{model.__name__}.{field} is new here: write into OTHERS another value of it, with a job in which it "
            "counts (and `same`, if it is inherited). If it changes no picture, declare it in INERT of "
            "sampling_core/planning/canonical_job.py as well"
        )
    assert_counts(model, field, other)


def assert_counts(model: type[BaseModel], field: str, other: Other) -> None:
    """Another value of a field is resolved and hashed, or the field is declared inert; what it inherits is the same."""
    of_a_grid = "job" in other.base
    if not of_a_grid and field not in INERT.get(model, set()):
        one, two = (jobs_of(data)[""] for data in (other.base, changed(model, field, other.value, other.base)))
        assert resolve(one) != resolve(two), (
            "another value resolves to the same: sampling_core/job/resolved.py forgets it"
        )
    before, after = keys(other.base), keys(changed(model, field, other.value, other.base))
    if field in INERT.get(model, set()):
        assert_same(before, after)
    else:
        assert before.jobs != after.jobs, (
            "another value has the same job hash: sampling_core/planning/canonical_job.py forgets it"
        )
        assert_masks_are_told_apart(before, after)
        assert before.latents != after.latents, "a run would take states of the other: its segments forget something"
    if other.same is not NOTHING:
        assert_same(before, keys(changed(model, field, other.same, other.base)))


def assert_same(one: Keys, two: Keys) -> None:
    """Equal hashes, and equal names of all that is stored."""
    assert one.jobs == two.jobs
    assert one.masks == two.masks
    assert one.latents == two.latents
    assert_masks_are_told_apart(one, two)


def assert_masks_are_told_apart(one: Keys, two: Keys) -> None:
    """One mask key, one set of masks and pictures."""
    for name in one.masks.keys() & two.masks.keys():
        if one.masks[name] == two.masks[name]:
            assert one.inputs[name].keys() == two.inputs[name].keys()
            assert all(torch.equal(one.inputs[name][key], two.inputs[name][key]) for key in one.inputs[name])


def test_no_entry_is_left_of_a_field_that_is_gone() -> None:
    known = {(model, field) for model, others in OTHERS.items() for field in others}
    assert known <= {(model, field) for model in OTHERS for field in model.model_fields}
    assert {(model, field) for model in OTHERS for field in INERT.get(model, set())} <= known


class NewRegion(Region):
    blur: int = 0


class NewJob(RenderJob):
    regions: tuple[NewRegion, ...] = ()  # pyright: ignore[reportIncompatibleVariableOverride] - pydantic may narrow
    vignette: int = 0


@pytest.mark.parametrize(
    "fields", [{"vignette": 1}, {"regions": [REGION | {"blur": 1}]}], ids=["of a job", "of a region"]
)
def test_a_new_field_that_nobody_resolves_fails_the_walk(fields: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_keys.jobs_of", lambda data: {"": NewJob.model_validate(data)})
    place, name = ((), "vignette") if "vignette" in fields else (("regions", 0), "blur")
    model = RenderJob if name == "vignette" else Region
    monkeypatch.setitem(PLACES, model, place)
    with pytest.raises(AssertionError, match=r"resolved\.py forgets it"):
        assert_counts(model, name, Other(1))


def region(**fields: Any) -> Data:
    return JOB | {"regions": [REGION | fields]}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (region(feather=0), region(feather=1)),
        (region(feather=2), region(feather=3)),
        (JOB | {"denoise": 0.99995}, JOB),
        (REGIONAL | {"denoise": 0.99995}, REGIONAL),
        (TWO_SAMPLERS | {"denoise": 0.99995}, TWO_SAMPLERS),
        (node("TwoSamplersForMask", mask_denoise=0.99995), TWO_SAMPLERS),
        (node("TwoAdvancedSamplersForMask") | {"denoise": 0.99995}, node("TwoAdvancedSamplersForMask")),
        (
            GRID_OF_MASKS | {"denoise": 0.99995, "scheduler": "ddim_uniform"},
            GRID_OF_MASKS | {"scheduler": "ddim_uniform"},
        ),
        (JOB | {"noise": "comfyui"}, JOB),
        (JOB | {"sampler": "dpmpp_sde_gpu"}, JOB | {"sampler": "dpmpp_sde"}),
        (JOB | {"overlap": "order"}, JOB),
        (region(weight=2.0), JOB),
        (region(weight=0.0), JOB),
        (region(variation_seed=3, variation_method="slerp"), JOB),
        (JOB | {"cfg": 1.0, "negative_prompt": "fog"}, JOB | {"cfg": 1.0}),
        (JOB | {"image_prompts": [LOOKED_AT | {"strength": 0}]}, JOB),
        (LOOKING | {"image_prompts": [LOOKED_AT, OTHER_IMAGE]}, LOOKING | {"image_prompts": [OTHER_IMAGE, LOOKED_AT]}),
        (JOB | {"regions": []}, JOB | {"regions": [], "base_only_steps": 3}),
        (JOB | {"batch_size": 4, "batch_index": [1]}, JOB | {"batch_size": 2, "batch_index": [1]}),
        (node("RegionalSampler", seed_2nd=3), REGIONAL),
        (
            SECOND_SEED | {"node": {"seed_2nd_mode": "fixed", "vary_noise": True}},
            SECOND_SEED
            | {
                "node": {"seed_2nd_mode": "fixed", "vary_noise": True},
                "regions": [REGION | {"variation_seed": 3, "variation_method": "slerp"}],
            },
        ),
        (masked(image="one again.png"), IMAGE),
        (STARTED | {"init_image": "one again.png"}, STARTED),
    ],
)
def test_what_draws_the_same_has_the_same_keys(one: Data, two: Data) -> None:
    """Names of states are made of masks and levels themselves: equal ones prove that the same is drawn."""
    assert_same(keys(one), keys(two))
