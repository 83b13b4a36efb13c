"""Flow models draw what diffusers' own pipelines draw with the same noise, sigmas and guidance."""

# pyright: reportAttributeAccessIssue=false
# diffusers annotates what its classes return with all that it can be.

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.errors import BadInput, ModelError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.flow_pipelines import Picture, flux_shift, simple, with_flow_pipeline
from tests.reference_pipelines import share_alike
from tests.tiny_flow_models import OTHER, SMALL, FlowSizes, tiny_flux, tiny_sd3, tiny_z_image

pytestmark = pytest.mark.usefixtures("workdir")


class Kind(NamedTuple):
    """A family: how a folder of it is made, the sigmas of a job, and what the pipeline is asked beside its prompt."""

    made: Callable[[Path, int, FlowSizes], str]
    sigmas: Callable[[dict[str, Any]], list[float]]
    asked: Callable[[dict[str, Any]], dict[str, Any]]
    cfg: float


def with_cfg(job: dict[str, Any]) -> dict[str, Any]:
    return {"guidance_scale": job["cfg"], "negative_prompt": job.get("negative_prompt")}


def static(shift: float) -> Callable[[dict[str, Any]], list[float]]:
    return lambda job: simple(job["steps"], shift, 1000)


def of_canvas(job: dict[str, Any]) -> list[float]:
    return simple(job["steps"], flux_shift(job["width"], job["height"]), 10_000)


KINDS = {
    "sd3": Kind(tiny_sd3, static(3.0), with_cfg, 4.0),
    "sd3 without T5": Kind(lambda *of: tiny_sd3(*of, t5=False), static(3.0), with_cfg, 4.0),
    "sd3.5": Kind(lambda *of: tiny_sd3(*of, of_35=True, shift=2.0), static(2.0), with_cfg, 4.0),
    "flux dev": Kind(tiny_flux, of_canvas, lambda job: {"guidance_scale": job["cfg"]}, 3.5),
    "flux schnell": Kind(
        lambda *of: tiny_flux(*of, schnell=True), static(1.0), lambda _: {"max_sequence_length": 256}, 1.0
    ),
    # diffusers counts its guidance from 0; the tiny one has positions for prompts of so many tokens.
    "z-image": Kind(
        tiny_z_image,
        static(3.0),
        lambda job: with_cfg(job | {"cfg": job["cfg"] - 1}) | {"max_sequence_length": 96},
        4.0,
    ),
}
READING = "prefect_regional_diffusion.sampling_core.models.loading.read_tensors"
REGIONS = [
    {"prompt": "a dog", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}, "feather": 12},
    {"prompt": "a blue Cat", "mask": {"x": 0.5, "y": 0.25, "width": 0.5, "height": 0.75}},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, FlowSizes], Path]:
    """A folder of a kind, made once."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def of(kind: str, seed: int, sizes: FlowSizes) -> Path:
        name = f"{kind} {seed} {sizes.text[0]}"
        return Path(KINDS[kind].made(folder / name, seed, sizes))

    return of


Placed = Callable[..., None]


@pytest.fixture
def place(made: Callable[[str, int, FlowSizes], Path]) -> Placed:
    """Copies a folder of a kind to `model`."""

    def of(kind: str, seed: int = 0, sizes: FlowSizes = SMALL) -> None:
        shutil.copytree(made(kind, seed, sizes), "model")

    return of


def job_of(kind: str, **fields: Any) -> dict[str, Any]:
    """Fields of a job. The canvas is no square, so that height and width are told apart."""
    job = {"model": "model", "prompt": "A red Circle, on blue!", "width": 96, "height": 64, "seed": 3, "steps": 5}
    return job | {"cfg": KINDS[kind].cfg, "sampler": "euler", "scheduler": "simple"} | fields


def drawn(job: dict[str, Any], checkpoint_steps: int | None = None) -> Picture:
    """The picture [height, width, 3] that the flow draws."""
    record = asyncio.run(render.fn(parse_job(job), checkpoint_steps))
    with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
        return np.asarray(picture)


def expected(kind: str, job: dict[str, Any]) -> Picture:
    return with_flow_pipeline(job, KINDS[kind].sigmas(job), **KINDS[kind].asked(job))


@pytest.mark.parametrize(("seed", "sizes"), [(0, SMALL), (1, OTHER)], ids=["small", "other"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_draws_what_the_pipeline_draws(kind: str, seed: int, sizes: FlowSizes, place: Placed) -> None:
    place(kind, seed, sizes)
    job = job_of(kind, seed=seed)
    ours = drawn(job)
    assert ours.std() > 20, "there is something to see"
    assert share_alike(ours, expected(kind, job)) >= 0.999
    for changes in ({"prompt": "A blue circle"}, {"seed": 7}):
        assert share_alike(ours, drawn(job | changes)) < 0.95, "the comparison would see a mistake"


@pytest.mark.parametrize("kind", ["sd3", "flux dev", "flux schnell", "z-image"])
@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 1, "width": 64, "height": 128},
        {"steps": 7},
        {"prompt": ""},
        {"prompt": "long red words " * 30},
    ],
    ids=str,
)
def test_whatever_is_asked(kind: str, fields: dict[str, Any], place: Placed) -> None:
    place(kind, 2)
    job = job_of(kind, **fields)
    assert share_alike(drawn(job), expected(kind, job)) >= 0.999


@pytest.mark.parametrize("kind", ["sd3", "z-image"])
@pytest.mark.parametrize("fields", [{"negative_prompt": "ugly"}, {"cfg": 1.0}], ids=str)
def test_classifier_free_guidance(fields: dict[str, Any], kind: str, place: Placed) -> None:
    place(kind)
    job = job_of(kind, **fields)
    ours = drawn(job)
    assert share_alike(ours, expected(kind, job)) >= 0.999
    assert share_alike(ours, drawn(job_of(kind))) < 0.95


@pytest.mark.parametrize(
    ("kind", "composition"),
    [
        *((kind, "joint") for kind in ("sd3", "sd3 without T5", "flux dev", "flux schnell", "z-image")),
        *((kind, "attention") for kind in ("sd3 without T5", "flux schnell")),
    ],
)
def test_regions_are_drawn_and_resumed_to_the_same_bits(kind: str, composition: str, place: Placed) -> None:
    place(kind)
    job = job_of(kind, regions=REGIONS, composition=composition)
    whole = drawn(job, 2)
    base = drawn(job | {"regions": []})
    assert share_alike(whole[:, :32], base[:, :32]) < 0.9
    states = sorted(Path(".regional/store/latents").rglob("*.safetensors"))
    before = {file: file.read_bytes() for file in states}
    late = [file for file in states if int(file.stem) > 2]
    assert late
    for file in late:
        file.unlink()
    assert (drawn(job, 2) == whole).all()
    assert all(file.read_bytes() == before[file] for file in late if file.exists())
    assert (drawn(job | {"regions": []}) == base).all()


@pytest.mark.parametrize("kind", ["sd3", "flux dev", "z-image"])
def test_the_original_nodes_draw_with_it(kind: str, place: Placed) -> None:
    place(kind)
    job = job_of(kind, regions=REGIONS, composition="sequential", base_only_steps=1)
    assert drawn(job).std() > 20


@pytest.mark.parametrize("kind", ["sd3", "flux dev"])
def test_pictures_come_to_the_latents_that_the_pipeline_has(kind: str, place: Placed) -> None:
    place(kind)
    picture = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vae = AutoencoderKL.from_pretrained("model/vae")
    with torch.inference_mode():
        mean = vae.encode((picture / 127.5 - 1).permute(2, 0, 1)[None]).latent_dist.mean
    expected = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    ours = open_folder("model").load_autoencoder(Placement()).encode(picture)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_planned_without_its_weights(kind: str, monkeypatch: pytest.MonkeyPatch, place: Placed) -> None:
    place(kind)
    monkeypatch.setattr(READING, lambda *_: pytest.fail("weights were read"))
    plan = prepare(parse_job(job_of(kind, regions=REGIONS)))
    assert plan.cost.most_rows == (3 if kind.startswith("flux") else 4)
    assert plan.memory_bytes() > plan.folder.numbers * 4


@pytest.mark.parametrize("kind", ["sd3", "flux dev", "z-image"])
@pytest.mark.parametrize(("field", "pixels"), [("width", 136), ("height", 72)])
def test_canvases_are_whole_tokens(kind: str, field: str, pixels: int, place: Placed) -> None:
    place(kind)
    with pytest.raises(BadInput, match=rf"^{field}: {pixels} .*a multiple of 16"):
        prepare(parse_job(job_of(kind, **{field: pixels})))


@pytest.mark.parametrize("kind", ["sd3", "z-image"])
def test_a_canvas_without_positions_is_refused(kind: str) -> None:
    if kind == "sd3":
        tiny_sd3(Path("model"), positions=10)
    else:
        tiny_z_image(Path("model"), lengths=(128, 12, 10))
    with pytest.raises(BadInput, match=r"^width: 192 .*at most 160"):
        prepare(parse_job(job_of(kind, width=192)))
    prepare(parse_job(job_of(kind, width=160)))


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("flux dev", {"negative_prompt": "ugly"}, r"^negative_prompt: .*FLUX.1 dev takes no negative prompt"),
        ("flux dev", {"sampler": "euler_cfg_pp"}, r"^sampler: .*FLUX.1 dev has one prediction"),
        ("flux schnell", {"negative_prompt": "ugly"}, r"^negative_prompt: .*FLUX.1 schnell takes no negative prompt"),
        ("flux schnell", {"cfg": 3.5}, r"^cfg: 3.5 .*FLUX.1 schnell has no guidance"),
        ("flux dev", {"scheduler": "GITS"}, r"^scheduler: .*flow model"),
    ],
)
def test_guidance_that_it_does_not_have_is_refused(
    kind: str, fields: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch, place: Placed
) -> None:
    place(kind)
    monkeypatch.setattr(READING, lambda *_: pytest.fail("weights were read"))
    with pytest.raises(BadInput, match=told) as refused:
        prepare(parse_job(job_of(kind, **fields)))
    assert "\n" not in str(refused.value)


def test_each_region_is_told_its_own_scale() -> None:
    tiny_flux(Path("model"))
    left = REGIONS[0] | {"cfg": 1.0}
    assert share_alike(drawn(job_of("flux dev", regions=[left])), drawn(job_of("flux dev", regions=REGIONS[:1]))) < 0.95


def test_dev_and_schnell_share_latents_but_no_levels() -> None:
    tiny_flux(Path("model"))
    tiny_flux(Path("other"), schnell=True)
    region = REGIONS[0] | {"model": "other", "cfg": 1.0}
    with pytest.raises(ModelError, match=r"^regions.0.model: other has other noise levels than .* at 96 x 64"):
        prepare(parse_job(job_of("flux dev", regions=[region])))


def test_flux_and_z_image_draw_in_one_picture_where_their_levels_agree() -> None:
    """They have one autoencoder, and latents alike."""
    tiny_z_image(Path("model"), shift=1.0)
    tiny_flux(Path("other"), schnell=True)
    job = job_of("z-image", regions=[REGIONS[0] | {"model": "other", "cfg": 1.0}])
    both = drawn(job)
    assert share_alike(both[:, 70:], drawn(job | {"regions": []})[:, 70:]) < 1
    assert share_alike(both[:, :32], drawn(job | {"regions": REGIONS[:1]})[:, :32]) < 0.9


def test_a_prompt_is_read_by_the_encoder_that_reads_the_most() -> None:
    tiny_sd3(Path("long"))
    tiny_sd3(Path("short"), t5=False)
    assert open_folder("long").facts.prompt_tokens == 255
    assert open_folder("long").reading("b" * 300).tokens == 301
    assert open_folder("short").facts.prompt_tokens == 75


CHANGES: list[tuple[str, str, dict[str, Any], str]] = [
    ("sd3", "transformer/config.json", {"in_channels": 8}, r"differ in their latent channels \(vae 16, transformer 8"),
    ("sd3", "transformer/config.json", {"pooled_projection_dim": 100}, "features of a whole prompt"),
    ("sd3", "transformer/config.json", {"num_layers": 40}, "fewer than its layers have"),
    ("sd3", "transformer/config.json", {"caption_projection_dim": 8}, "caption_projection_dim of 32"),
    ("sd3", "transformer/config.json", {"mystery": 1}, "'mystery' is no key that a SD3Transformer2DModel"),
    ("sd3", "text_encoder_3/config.json", {"d_model": 64}, "features of a token"),
    ("sd3", "text_encoder_3/config.json", {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj"),
    ("sd3", "text_encoder_3/config.json", {"vocab_size": 20}, "other sizes than text_encoder_3/config.json"),
    ("sd3", "tokenizer_2/tokenizer_config.json", {"model_max_length": 50}, "differ in their number of tokens"),
    ("sd3", "tokenizer_3/tokenizer_config.json", {"padding_side": "left"}, "padding_side"),
    ("sd3", "vae/config.json", {"latents_mean": [0.0] * 16}, "latents_mean"),
    ("sd3", "scheduler/scheduler_config.json", {"shift_terminal": 0.02}, "shift_terminal"),
    ("sd3", "scheduler/scheduler_config.json", {"use_flow_sigmas": True}, "use_flow_sigmas"),
    ("sd3", "model_index.json", {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}, "FlowMatchEuler"),
    ("sd3", "model_index.json", {"transformer": ["evil", "Evil"]}, "code that comes with a model is not run"),
    ("flux dev", "transformer/config.json", {"in_channels": 384}, "channels of a token"),
    ("flux dev", "transformer/config.json", {"axes_dims_rope": [4, 4, 4]}, "axes_dims_rope"),
    ("flux dev", "transformer/config.json", {"patch_size": 2}, "patch_size"),
    ("flux dev", "text_encoder/config.json", {"hidden_size": 48}, "features of a whole prompt"),
    ("flux dev", "text_encoder_2/config.json", {"d_model": 64}, "features of a token"),
    ("flux dev", "scheduler/scheduler_config.json", {"max_image_seq_len": 256}, "more than its base_image_seq_len"),
    ("flux dev", "model_index.json", {"text_encoder_2": [None, None]}, "T5EncoderModel"),
    ("z-image", "transformer/config.json", {"siglip_feat_dim": 32}, "siglip_feat_dim"),
    ("z-image", "transformer/config.json", {"all_patch_size": [2, 4]}, "all_patch_size"),
    ("z-image", "transformer/config.json", {"axes_dims": [8, 4, 2]}, "axes_dims"),
    ("z-image", "transformer/config.json", {"axes_lens": [32, 32, 32]}, "axes_lens"),
    ("z-image", "transformer/config.json", {"cap_feat_dim": 64}, "features of a token"),
    ("z-image", "text_encoder/config.json", {"num_key_value_heads": 3}, "a multiple of num_key_value_heads"),
    ("z-image", "text_encoder/config.json", {"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
    ("z-image", "tokenizer/tokenizer_config.json", {"padding_side": "left"}, "padding_side"),
    ("sd3", "model_index.json", {"tokenizer_3": [None, None]}, "T5Tokenizer"),
]


@pytest.mark.parametrize(("kind", "file", "changes", "told"), CHANGES, ids=[change[-1] for change in CHANGES])
def test_what_does_not_fit_is_refused_by_name(
    kind: str, file: str, changes: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch, place: Placed
) -> None:
    """In one line, and before weights are read."""
    place(kind)
    path = Path("model") / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    monkeypatch.setattr(ModelFiles, "digest", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ModelError, match=told) as refused:
        prepare(parse_job(job_of(kind)))
    assert "\n" not in str(refused.value)
