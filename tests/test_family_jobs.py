"""Jobs on Stable Diffusion XL beyond a prompt alone: regions, resume, plan; and folders of it that are refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from prefect_regional_diffusion.flows.batch import batch
from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.flows.shard import shard
from prefect_regional_diffusion.sampling_core.errors import BadInput, ModelError
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.shared_fields import OF_THE_MODEL
from prefect_regional_diffusion.sampling_core.models.families.stable_diffusion_xl import StableDiffusionXL
from prefect_regional_diffusion.sampling_core.models.family import Canvas, Defaults, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.tasks.runtime.model_cache import open_model
from prefect_regional_diffusion.tasks.runtime.preparations import preparations
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from prefect_regional_diffusion.tasks.runtime.silent_fields import filled_in
from tests.reference_pipelines import Picture
from tests.tiny_models import SMALL, tiny_sd, tiny_sdxl
from tests.watching import paths_touched

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
REGION = {"prompt": "Three QUARTERS of green leaves: 24%", "mask": LEFT}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models: `xl` and `sd`."""
    folder = tmp_path_factory.mktemp("models")
    tiny_sdxl(folder / "xl")
    tiny_sd(folder / "sd")
    return folder


@pytest.fixture(autouse=True)
def models(made: Path, workdir: Path) -> None:
    """Copies of them."""
    shutil.copytree(made, workdir, dirs_exist_ok=True)


def asked(**fields: Any) -> dict[str, Any]:
    job = {"model": "xl", "prompt": "a red circle", "width": 192, "height": 128, "seed": 3, "steps": 4, "cfg": 4.0}
    return job | {"sampler": "euler", "scheduler": "simple"} | fields


def record_of(checkpoint_steps: int | None = None, store: str | None = None, **fields: Any) -> dict[str, Any]:
    return asyncio.run(render.fn(parse_job(asked(**fields)), checkpoint_steps=checkpoint_steps, store=store))


def picture_of(record: dict[str, Any]) -> Picture:
    with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
        return np.asarray(picture)


def apart(one: Picture, other: Picture) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.mark.parametrize("composition", ["joint", "sequential"])
def test_a_region_draws_its_part(composition: str) -> None:
    plain = picture_of(record_of(cfg=8.0))
    other = picture_of(record_of(cfg=8.0, regions=[REGION], composition=composition, base_only_steps=0))
    halves = [apart(plain[:, half], other[:, half]) for half in (slice(0, 64), slice(128, 192))]
    assert halves[0] > 5, "under the mask, another prompt shows"
    assert halves[0] > 2 * halves[1], "beyond it, little changes"


def test_a_region_with_the_base_s_prompt_changes_nothing() -> None:
    same = picture_of(record_of(regions=[REGION | {"prompt": "a red circle"}], base_only_steps=0))
    assert apart(picture_of(record_of()), same) < 0.1


@pytest.mark.parametrize("composition", ["joint", "attention", "sequential"])
@pytest.mark.parametrize("model", ["xl", "sd"])
def test_it_goes_on_to_the_same_bits(composition: str, model: str) -> None:
    fields: dict[str, Any] = {"model": model, "regions": [REGION], "composition": composition, "sampler": "dpmpp_2m"}
    fields |= {"width": 96, "height": 64}
    whole = record_of(store=".regional/store/whole", **fields)
    first = picture_of(whole)
    record_of(1, ".regional/store/cut", **fields)
    newest = max(Path(".regional/store/cut").glob("latents/*/*.safetensors"), key=lambda state: state.stem)
    newest.unlink()
    again = record_of(1, ".regional/store/cut", **fields)
    assert (picture_of(again) == first).all()
    assert again["steps_computed"] > 0


def test_it_is_planned_without_reading_a_weight() -> None:
    prepare(parse_job(asked()))  # what is hashed once is not read again
    with paths_touched() as touched:
        plan = prepare(parse_job(asked(regions=[REGION])))
    assert not [path for path in touched if path.endswith(".safetensors")]
    assert plan.cost.evaluations == 2 + 3 * 3, "the negative row is shared"
    assert plan.memory_bytes() > plan.folder.numbers
    assert plan.folder.facts.empty_negative == "none"


def test_an_empty_negative_prompt_is_zeros_if_the_model_says_so() -> None:
    record_of()
    stored = [load_file(file) for file in Path(".regional/store/prompts").iterdir()]
    shapes = {name: tuple(tensor.shape) for name, tensor in stored[0].items()}
    assert shapes == {"prompt_embeds": (1, 77, sum(SMALL.text)), "pooled_prompt_embeds": (1, 40)}
    assert sorted(any(bool(tensor.any()) for tensor in one.values()) for one in stored) == [False, True]


def test_canvases_of_two_sizes_are_told_apart_in_one_shard() -> None:
    """They share the encoded prompt, and not what goes with it."""
    sizes = [(192, 128), (128, 192), (128, 128)]
    jobs = [
        NamedJob(name=f"{width} x {height}", job=parse_job(asked(width=width, height=height)))
        for width, height in sizes
    ]
    alone = [
        picture_of(record_of(store=".regional/store/alone", width=width, height=height)) for width, height in sizes
    ]
    asyncio.run(shard.fn(jobs, store=".regional/store/together"))
    found: dict[tuple[int, int], Picture] = {}
    for file in Path(".regional/store/together").rglob("*.png"):
        with Image.open(file) as picture:
            found[picture.size] = np.asarray(picture)
    assert found.keys() == set(sizes)
    for size, expected in zip(sizes, alone, strict=True):
        assert apart(found[size], expected) < 0.1
    assert len(list(Path(".regional/store/together/prompts").iterdir())) == 2


def test_sizes_are_an_input_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model("xl")
    told = model.size_tensors(SizeConditioning(Canvas(192, 128), Canvas(400, 300), 8, 16))
    assert told["time_ids"].tolist() == [[300, 400, 16, 8, 128, 192]]
    right = picture_of(record_of())
    wrong = model.size_tensors(SizeConditioning(Canvas(64, 64), Canvas(64, 64)))
    monkeypatch.setattr(StableDiffusionXL, "size_tensors", lambda *_: wrong)
    assert apart(picture_of(record_of(store=".regional/store/wrong")), right) > 1


@pytest.mark.parametrize(("upcast", "wanted"), [(True, torch.float32), (False, torch.float16)])
def test_the_autoencoder_is_as_wide_as_its_configuration_asks(upcast: bool, wanted: torch.dtype) -> None:
    edit("xl/vae/config.json", force_upcast=upcast)
    loaded: Any = open_model("xl").load_autoencoder(Placement(dtype=torch.float16))
    assert loaded._vae.dtype == wanted


SILENT: dict[str, Any] = {"model": "xl", "prompt": "a red circle", "steps": 2}
AS_EMBEDDED = {"width": 128, "height": 128, "steps": 2, "cfg": 1.5, "sampler": "dpmpp_2m", "scheduler": "karras"}


def test_a_silent_job_is_drawn_as_suits_its_model() -> None:
    """The picture and its record have its size; what is written in the job counts."""
    edit("xl/unet/config.json", sample_size=24)
    assert Defaults._fields == OF_THE_MODEL
    record = asyncio.run(render.fn(parse_job(SILENT | {"sampler": "euler"})))
    assert picture_of(record).shape == (192, 192, 3)
    told = {name: record["job"][name] for name in OF_THE_MODEL}
    assert told == {"width": 192, "height": 192, "steps": 2, "cfg": 5.0, "sampler": "euler", "scheduler": "karras"}
    again = asyncio.run(render.fn(parse_job(SILENT | told)))
    assert (again["job_hash"], again["steps_computed"]) == (record["job_hash"], 0)


def test_steps_are_those_that_suit_the_model() -> None:
    silent = parse_job({"model": "xl", "prompt": "a red circle"})
    suited = filled_in(silent, lambda model: open_model(model).facts.defaults._replace(steps=4))
    assert suited.steps == 4
    assert filled_in(suited, _nobody_is_asked) is suited, "and filling in again changes nothing"


def _nobody_is_asked(model: str) -> Defaults:
    raise AssertionError(model)


def test_of_a_batch_a_silent_job_is_not_the_one_that_says_what_suits_another_model() -> None:
    edit("xl/unet/config.json", sample_size=24)
    jobs = (NamedJob(name="silent", job=parse_job(SILENT)), NamedJob(name="told", job=parse_job(SILENT | AS_EMBEDDED)))
    assert jobs[0].job == jobs[1].job, "a library's comparison does not see what was set"
    drawn = asyncio.run(batch.fn(jobs))
    assert len(list(Path("renders").rglob("*.png"))) == 3, "both, and the sheet"
    sizes: set[tuple[int, int]] = set()
    for file in Path("renders").rglob("*.png"):
        with Image.open(file) as picture:
            sizes.add(picture.size)
    assert {(192, 192), (128, 128)} < sizes, drawn


def test_what_suits_the_model_is_checked_with_the_rest_of_the_job() -> None:
    edit("xl/unet/config.json", sample_size=24)
    node = {"name": "MaskGridNKSamplersAdvanced"}
    grid: dict[str, Any] = {"composition": "sequential", "sampler": "euler", "node": node}
    assert preparations().look_up(parse_job(SILENT | grid)).job.width == 192, "which has three columns, and 128 has not"
    grid["node"] = node | {"columns": 5}
    with pytest.raises(BadInput, match=r"^node\.columns: 5 .*divides the width, 192 pixels"):
        preparations().look_up(parse_job(SILENT | grid))


def edit(name: str, **changes: Any) -> None:
    file = Path(name)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("model_index.json", {"text_encoder_2": [None, None]}, r"CLIPTextModelWithProjection"),
        (
            "model_index.json",
            {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]},
            r"has a text_encoder that is .*, not transformers CLIPTextModel \(code",
        ),
        ("model_index.json", {"tokenizer_2": ["transformers", "T5Tokenizer"]}, r"T5Tokenizer"),
        ("unet/config.json", {"addition_embed_type": None}, r"text_time"),
        ("unet/config.json", {"addition_embed_type": "image"}, r"unet/config.json: addition_embed_type"),
        ("unet/config.json", {"addition_time_embed_dim": 16}, r"projection_class_embeddings_input_dim 88, not 136"),
        ("unet/config.json", {"cross_attention_dim": 64}, r"cross_attention_dim 64, hidden_size 32 \+ 48"),
        ("unet/config.json", {"time_cond_proj_dim": 32}, r"unet/config.json: 'time_cond_proj_dim' is 32"),
        ("vae/config.json", {"latents_mean": [0.0], "latents_std": [1.0]}, r"vae/config.json: .*one for a channel"),
        ("vae/config.json", {"shift_factor": 0.1}, r"vae/config.json: 'shift_factor'"),
        (
            "text_encoder_2/config.json",
            {"projection_dim": 32},
            r"projection_class_embeddings_input_dim|text_projection",
        ),
        ("text_encoder_2/config.json", {"model_type": "t5"}, r"text_encoder_2/config.json"),
        ("tokenizer_2/tokenizer_config.json", {"model_max_length": 40}, r"different numbers of tokens \(77 and 40\)"),
        ("tokenizer_2/tokenizer_config.json", {"auto_map": {"x": "y"}}, r"tokenizer_2/tokenizer_config.json"),
        (
            "scheduler/scheduler_config.json",
            {"rescale_betas_zero_snr": True},
            r"rescale_betas_zero_snr without prediction_type v_prediction",
        ),
        ("scheduler/scheduler_config.json", {"sigma_data": 0.5}, r"scheduler_config.json: 'sigma_data'"),
    ],
)
def test_folders_that_are_not_of_the_family_are_refused_in_a_line(
    file: str, changes: dict[str, Any], told: str
) -> None:
    edit(f"xl/{file}", **changes)
    with paths_touched() as touched, pytest.raises(ModelError, match=told) as refused:
        prepare(parse_job(asked()))
    assert str(refused.value).startswith("model: ")
    assert "\n" not in str(refused.value)
    assert not [path for path in touched if "renders" in path or "latents" in path]


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("unet/config.json", {"time_cond_proj_dim": 32}, r"'time_cond_proj_dim' is 32, and may only be null"),
        ("unet/config.json", {"in_channels": 9}, r"does not read and write the latents of its vae \(9 and 4 channels"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, r"vae/config.json: 'latents_mean'"),
        ("vae/config.json", {"shift_factor": 0.1}, r"vae/config.json: 'shift_factor'"),
        ("scheduler/scheduler_config.json", {"sigma_data": 0.5}, r"scheduler_config.json: 'sigma_data'"),
        (
            "scheduler/scheduler_config.json",
            {"rescale_betas_zero_snr": True},
            r"rescale_betas_zero_snr without prediction_type v_prediction",
        ),
    ],
)
def test_stable_diffusion_1_and_2_refuse_what_their_pipeline_does_not_know(
    file: str, changes: dict[str, Any], told: str
) -> None:
    edit(f"sd/{file}", **changes)
    with pytest.raises(ModelError, match=told):
        open_model("sd")


def test_a_unet_of_the_other_family_is_refused() -> None:
    edit("sd/unet/config.json", addition_embed_type="text_time")
    with pytest.raises(
        ModelError, match=r"unet/config.json: 'addition_embed_type' is 'text_time', and may only be null"
    ):
        open_model("sd")


@pytest.mark.parametrize("folder", ["text_encoder", "text_encoder_2", "unet", "vae"])
def test_a_tensor_that_is_missing_is_named_before_anything_is_drawn(folder: str) -> None:
    (file,) = Path("xl", folder).glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(name for name in tensors if name.endswith("bias"))[-1]
    tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{folder} lacks {name.removeprefix('text_model.')}"):
        record_of()
    assert not list(Path(".regional/store/latents").rglob("*.safetensors"))


def test_pickled_weights_of_the_second_encoder_are_refused() -> None:
    Path("xl/text_encoder_2/model.safetensors").rename("xl/text_encoder_2/pytorch_model.bin")
    with pytest.raises(ModelError, match=r"text_encoder_2/model.safetensors is missing"):
        open_model("xl")


def test_models_with_other_latents_do_not_go_together() -> None:
    with pytest.raises(ModelError, match=r"^regions.0.model: .*latent_affine scale 0.18215"):
        prepare(parse_job(asked(regions=[REGION | {"model": "sd"}])))


def test_what_an_empty_negative_prompt_is_counts_in_the_fingerprint() -> None:
    before = open_model("xl").fingerprint()
    edit("xl/model_index.json", force_zeros_for_empty_prompt=False)
    assert open_model("xl").fingerprint() != before
