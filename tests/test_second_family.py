"""A family that is not Stable Diffusion: nothing outside a family assumes 4 channels, 8 pixels or one schedule."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.errors import BadInput, ModelError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.families import FAMILIES
from prefect_regional_diffusion.sampling_core.models.family import Canvas
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from prefect_regional_diffusion.tasks.runtime.prepare import Prepared, prepare
from tests.problems import plan_of
from tests.toy_family import PIPELINE, color_of, open_toy, toy_folder

KINDS = [(1, 4), (4, 16), (6, 16), (16, 8), (12, 32)]
"""Channels, and pixels of a cell."""
RIGHT = {"prompt": "right", "mask": {"x": 0.5, "y": 0, "width": 0.5, "height": 1}}


@pytest.fixture(autouse=True)
def toys(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The family is known, and nothing is loaded."""
    monkeypatch.setitem(FAMILIES, PIPELINE, open_toy)  # pyright: ignore[reportArgumentType]
    loaded_parts.cache_clear()


def asked(**fields: Any) -> dict[str, Any]:
    base = {"model": "toy", "prompt": "base", "width": 192, "height": 128, "steps": 4, "cfg": 1.0, "sampler": "euler"}
    return base | {"scheduler": "simple"} | fields


def prepared(**fields: Any) -> Prepared:
    return prepare(parse_job(asked(**fields)))


def drawn(**fields: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The picture [height, width, 3] that the flow draws."""
    record = asyncio.run(render.fn(parse_job(asked(**fields))))
    with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
        return np.asarray(picture)


def shown(prompt: str, channels: int) -> list[int]:
    """The colour of a prompt; of fewer channels than three the last one is shown again."""
    color = color_of(prompt).tolist()
    return [color[min(channel, channels - 1)] for channel in range(3)]


@pytest.mark.parametrize(
    ("channels", "cell", "composition"),
    [*((*kind, "joint") for kind in KINDS), *((*kind, "sequential") for kind in KINDS[:3])],
)
def test_a_picture_of_it_has_each_prompt_where_it_belongs(channels: int, cell: int, composition: str) -> None:
    """Through the whole flow: prompts, sampling, store and decoding."""
    toy_folder(Path("toy"), channels, cell)
    picture = drawn(regions=[RIGHT], composition=composition, base_only_steps=1)
    assert picture.shape == (128, 192, 3)
    assert np.abs(picture[16, 16].astype(int) - shown("base", channels)).max() <= 1
    assert np.abs(picture[112, 176].astype(int) - shown("right", channels)).max() <= 1
    states = [load_file(file) for file in Path(".regional/store/latents").rglob("*.safetensors")]
    latents = {tuple(state["x" if composition == "joint" else "latent"].shape) for state in states}
    assert latents == {(1, channels, 128 // cell, 192 // cell)}


@pytest.mark.parametrize(("channels", "cell"), KINDS[:3])
def test_what_is_protected_stays(channels: int, cell: int) -> None:
    """Its latent goes through the affine there and back, and the mask onto its lattice."""
    toy_folder(Path("toy"), channels, cell)
    Image.fromarray(np.full((128, 192, 3), 77, np.uint8)).save("start.png")
    left = {"x": 0, "y": 0, "width": 0.5, "height": 1}
    picture = drawn(init_image="start.png", protect=[left])
    assert (picture[:, :96] == 77).all()
    assert np.abs(picture[64, 176].astype(int) - shown("base", channels)).max() <= 1


def test_its_levels_depend_on_the_canvas() -> None:
    toy_folder(Path("toy"))
    levels = [plan_of(prepared(width=width).run).levels for width in (128, 128, 256)]
    toy = open_folder("toy")
    assert levels == [toy.noise_schedule(Canvas(width, 128), 4) for width in (128, 128, 256)]
    assert levels[0] == levels[1] != levels[2]
    assert levels[2].sigmas[500] > levels[0].sigmas[500]


def test_models_go_together_if_they_do_on_this_canvas() -> None:
    """One of a fixed shift, and one whose shift is that on a canvas of 64 cells alone."""
    toy_folder(Path("toy"), shift_per_cell=0.01)
    toy_folder(Path("other"), shift_per_cell=0.02)
    region = RIGHT | {"model": "other"}
    with pytest.raises(ModelError, match=r"^regions.0.model: other has other noise levels than .* at 128 x 128"):
        prepared(width=128, height=128, regions=[region])
    Path("other/model_index.json").write_text(Path("toy/model_index.json").read_text() + "\n")
    prepared(width=128, height=128, regions=[region])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"channels": 5}, "latent_channels 5"),
        ({"cell": 8}, "vae_scale_factor 8"),
    ],
)
def test_models_of_other_latents_do_not_go_together(changes: dict[str, int], told: str) -> None:
    toy_folder(Path("toy"))
    toy_folder(Path("other"), **changes)
    with pytest.raises(ModelError, match=told):
        prepared(regions=[RIGHT | {"model": "other"}])
    with pytest.raises(ModelError, match=r"^regions.0.model: embedded has other latents .* \(latent_channels 4, not"):
        prepared(regions=[RIGHT | {"model": "embedded"}])


@pytest.mark.parametrize("field", ["width", "height"])
def test_canvases_that_it_has_no_latents_for_are_refused(field: str) -> None:
    toy_folder(Path("toy"))
    with pytest.raises(BadInput, match=rf"^{field}: 136 .*a multiple of 32"):
        prepared(**{field: 136})


def test_it_is_planned_from_its_facts() -> None:
    toy_folder(Path("toy"))
    plan = prepared(prompt="one two three four five", regions=[RIGHT])
    assert plan.memory_bytes() == 192 * 128 * plan.cost.most_rows * 4
    assert any(line.startswith("prompt: 5 tokens; the model reads the first 3") for line in plan.warnings())


def test_several_tensors_of_a_prompt_are_stored_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_folder(Path("toy"))
    first = drawn(regions=[RIGHT])
    for file in Path(".regional/store/prompts").iterdir():
        stored = load_file(file)
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        assert shapes == {"pooled_prompt_embeds": (1, 6), "prompt_embeds": (1, 3, 2)}
    monkeypatch.setattr("tests.toy_family.Toy.load_text_encoder", lambda *_: pytest.fail("it was loaded again"))
    loaded_parts.cache_clear()
    for file in Path(".regional/store/latents").rglob("*.safetensors"):
        file.unlink()
    assert (drawn(regions=[RIGHT]) == first).all()
