"""Jobs with LoRAs: one forward a step, resumed, shared, and known by what their files hold."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.flows.shard import shard
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.linked_models import link
from tests.tiny_loras import (
    UNETS,
    asked,
    lora_models,
    opened,
    used,
)

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
MIDDLE = {"x": 0.25, "y": 0, "width": 0.5, "height": 0.5}
RIGHT = {"x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_models(tmp_path_factory.mktemp("models"), UNETS)


@pytest.fixture(autouse=True)
def models(made: Path, workdir: Path) -> None:
    """Links to the models and their LoRAs."""
    link(made, workdir)


def three_regions(model: str) -> dict[str, Any]:
    """Two LoRAs in different regions, and both in the third."""
    a, b = used(model, "a", 0.8), used(model, "b", -0.5)
    return asked(
        model,
        regions=[
            {"prompt": "green leaves", "mask": LEFT, "loras": [a]},
            {"prompt": "blue water", "mask": MIDDLE, "loras": [b]},
            {"prompt": "green leaves", "mask": RIGHT, "loras": [a, b]},
        ],
    )


def record_of(job: Mapping[str, Any], checkpoint_steps: int | None = None, store: str = "store") -> dict[str, Any]:
    place = f".regional/store/{store}"
    return asyncio.run(render.fn(parse_job(job), checkpoint_steps=checkpoint_steps, store=place))


def latent_of(record: Mapping[str, Any], store: str = "store") -> Tensor:
    tensors = load_file(Path(".regional/store") / store / f"{record['latents']}.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors) if tensors[name].dtype == torch.float32])


def picture_of(record: Mapping[str, Any]) -> Any:
    with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
        return np.asarray(picture).astype(int)


@pytest.mark.parametrize("model", UNETS)
def test_a_job_of_regions_with_loras_takes_one_forward_a_step(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, rows = UNetDenoiser.__call__, list[int]()

    def compared(network: UNetDenoiser, x: Tensor, levels: Any, told: Conditioning, loras: Any) -> Tensor:
        """The answers, after each is found to be that of a forward of its own."""
        found = answer(network, x, levels, told, loras)
        rows.append(len(x))
        for i in range(len(x)):
            row = slice(i, i + 1)
            alone = answer(network, x[row], levels[row], told.rows(row), loras[row])
            torch.testing.assert_close(found[row], alone, atol=1e-5 * max(1.0, levels[i].sigma), rtol=0)
        return found

    monkeypatch.setattr(UNetDenoiser, "__call__", compared)
    planned = prepare(parse_job(three_regions(model))).cost
    record = record_of(three_regions(model))
    # Base and three regions, each with its own negative row: no two have the same LoRAs.
    assert rows == [8] * 4
    assert (record["forwards"], record["evaluations"]) == (planned.forwards, planned.evaluations) == (4, 32)


def test_a_region_s_lora_draws_in_its_region() -> None:
    region = {"prompt": "a red circle", "mask": LEFT}
    plain = picture_of(record_of(asked(regions=[region])))
    styled = picture_of(record_of(asked(regions=[region | {"loras": [used("sd", "a")]}])))
    left, right = (np.abs(plain - styled)[:, half].mean() for half in (slice(0, 48), slice(80, 128)))
    assert left > 5
    assert left > 3 * right


@pytest.mark.parametrize("composition", ["joint", "sequential"])
@pytest.mark.parametrize("model", UNETS)
def test_it_goes_on_to_the_same_bits(model: str, composition: str) -> None:
    job = three_regions(model) | {"composition": composition, "width": 64, "height": 64}
    whole = record_of(job)
    first = picture_of(whole)
    record_of(job, 1, "cut")
    newest = max(Path(".regional/store/cut").glob("latents/*/*.safetensors"), key=lambda state: state.stem)
    newest.unlink()
    again = record_of(job, 1, "cut")
    assert (picture_of(again) == first).all()
    assert again["steps_computed"] > 0


def test_who_has_the_same_loras_shares_rows() -> None:
    a = used("sd", "a")

    def rows(**fields: Any) -> int:
        return prepare(parse_job(asked(**fields))).cost.evaluations

    region = {"prompt": "green leaves", "mask": LEFT}
    assert rows(regions=[region]) == rows(regions=[region], loras=[a]) == 4 * 3, "the region has the job's"
    assert rows(regions=[region | {"loras": []}], loras=[a]) == 4 * 4
    assert rows(regions=[region | {"loras": [a]}], loras=[a]) == 4 * 3
    shutil.copy("sd-a.safetensors", "copy.safetensors")
    assert rows(regions=[region | {"loras": [a | {"file": "copy.safetensors"}]}], loras=[a]) == 4 * 3, "by content"


def test_no_strength_is_no_lora() -> None:
    plain = record_of(asked())
    none = record_of(asked(loras=[used("sd", "t", 0.0)]), store="none")
    assert none["job_hash"] == plain["job_hash"]
    assert torch.equal(latent_of(plain), latent_of(none, "none"))


def test_a_job_is_known_by_what_its_files_hold() -> None:
    def job_hash(*loras: dict[str, Any]) -> str:
        return prepare(parse_job(asked(loras=list(loras)))).job_hash

    a, b = used("sd", "a", 0.5), used("sd", "b")
    shutil.copy("sd-a.safetensors", "copy.safetensors")
    assert job_hash(a, b) == job_hash(b, a) == job_hash(a | {"file": "copy.safetensors"}, b)
    assert job_hash(a, a) == job_hash(a | {"strength": 1.0})
    assert job_hash(a) == job_hash(a | {"text_strength": 0.3}), "it has no weights for text"
    t = used("sd", "t", 0.5)
    different = [(), (a,), (b,), (a, b), (t,), (t | {"text_strength": 0.0},), (a | {"strength": 0.6},)]
    assert len({job_hash(*loras) for loras in different}) == len(different)


@pytest.mark.parametrize("model", UNETS)
def test_a_prompt_is_read_with_the_loras_of_its_region(model: str) -> None:
    t, same = used(model, "t", 0.5), {"prompt": "a red circle", "mask": LEFT}
    record_of(asked(model, regions=[same | {"loras": [t]}, same | {"loras": [t | {"text_strength": 0}]}], steps=1))
    prompts = [load_file(file)["prompt_embeds"] for file in Path(".regional/store/store/prompts").iterdir()]
    # What acts on the denoiser alone leaves a prompt as it is; without a negative prompt, SDXL has zeros.
    assert len(prompts) == 4
    apart = [(one - other).abs().max() for i, one in enumerate(prompts) for other in prompts[:i]]
    if model == "sd":
        assert min(apart) > 0.01


def test_jobs_with_different_loras_share_their_forwards() -> None:
    jobs = [
        NamedJob(name=f"job {name}", job=parse_job(asked(loras=[used("sd", name)] if name else [], prompt=f"a {name}")))
        for name in ("a", "b", "t", "")
    ]
    alone = [latent_of(record_of(one.job.model_dump(mode="json"))) for one in jobs]
    done = asyncio.run(shard.fn(jobs, store=".regional/store/together", keep="final"))
    assert (done["drawn"], done["forwards"]) == (4, 4)
    for one, expected in zip(jobs, alone, strict=True):
        record = record_of(one.job.model_dump(mode="json"), store="together")
        assert record["steps_computed"] == 0
        torch.testing.assert_close(latent_of(record, "together"), expected, atol=1e-4, rtol=1e-4)


def test_a_record_tells_the_files_and_no_paths(workdir: Path) -> None:
    place = str(workdir / "sd-a.safetensors")
    record = record_of(asked(loras=[used("sd", "a") | {"file": place}], steps=1))
    assert record["files"]["loras.0.file"]["name"] == "sd-a.safetensors"
    assert record["files"]["loras.0.file"]["sha256"] == opened("sd", place).fingerprint()
    assert str(workdir) not in json.dumps(record["job"])
