"""Jobs with ControlNets and T2I-Adapters: one forward a step, in windows of steps, resumed, shared, and known by what
their files hold."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from PIL import Image
from prefect.client.schemas.objects import FlowRun
from safetensors.torch import load_file
from torch import Tensor

from prefect_regional_diffusion.flows.queueing.waiting_run import waiting_run
from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.flows.shard import shard
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.tasks.runtime.loaded_parts import loaded_parts
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.forked import render_json
from tests.killing import kill_and_render_again
from tests.linked_models import link
from tests.processes import environment
from tests.tiny_controls import MODELS, control_models, used
from tests.tiny_loras import asked, save_lora, tiny_lora

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
MIDDLE = {"x": 0.25, "y": 0, "width": 0.5, "height": 0.5}
RIGHT = {"x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5}
LEAVES = {"prompt": "green leaves", "mask": LEFT}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = control_models(tmp_path_factory.mktemp("models"))
    for model in MODELS:
        for name, seed in (("a", 1), ("b", 2)):
            save_lora(tiny_lora(folder / model, seed).peft(), folder / f"{model}-{name}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def models(made: Path, workdir: Path) -> None:
    """Links to the models and their controls."""
    link(made, workdir)


def three_regions(model: str) -> dict[str, Any]:
    """Two LoRAs, and in one region a ControlNet."""
    a, b = ({"file": f"{model}-{name}.safetensors", "strength": 0.6} for name in ("a", "b"))
    return asked(
        model,
        regions=[
            LEAVES | {"loras": [a]},
            {"prompt": "blue water", "mask": MIDDLE, "loras": [b], "controls": [used(model, "a", strength=0.8)]},
            {"prompt": "white snow", "mask": RIGHT},
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


@pytest.mark.parametrize("model", MODELS)
def test_three_regions_with_loras_and_a_controlnet_take_one_forward_a_step(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, rows = UNetDenoiser.__call__, list[tuple[int, int]]()

    def compared(network: UNetDenoiser, x: Tensor, levels: Any, told: Conditioning, adapters: Any) -> Tensor:
        """The answers, after each is found to be that of a forward of its own."""
        found = answer(network, x, levels, told, adapters)
        rows.append((len(x), sum(bool(row.controls) for row in adapters)))
        for i in range(len(x)):
            row = slice(i, i + 1)
            alone = answer(network, x[row], levels[row], told.rows(row), adapters[row])
            torch.testing.assert_close(found[row], alone, atol=1e-5 * max(1.0, levels[i].sigma), rtol=0)
        return found

    monkeypatch.setattr(UNetDenoiser, "__call__", compared)
    planned = prepare(parse_job(three_regions(model))).cost
    record = record_of(three_regions(model))
    # Base and the third region share their negative row; of the others none is like another.
    assert rows == [(7, 2)] * 4
    assert (record["forwards"], record["evaluations"]) == (planned.forwards, planned.evaluations) == (4, 28)
    assert planned.control_rows == 8


@pytest.mark.parametrize("model", MODELS)
def test_what_is_in_memory_is_known_by_the_names_that_waiting_runs_have_for_it(model: str) -> None:
    loaded_parts.cache_clear()
    job = three_regions(model)
    record_of(job)
    run = waiting_run(FlowRun(flow_id=uuid4(), parameters={"job": job}))
    assert loaded_parts().names == run.models | run.adapters


@pytest.mark.parametrize("composition", ["joint", "sequential"])
@pytest.mark.parametrize("model", MODELS)
def test_it_goes_on_to_the_same_bits(model: str, composition: str) -> None:
    controls = [used(model, "t", "2.png", start=0.3)]
    job = three_regions(model) | {"composition": composition, "controls": controls, "width": 64, "height": 64}
    whole = record_of(job)
    first = picture_of(whole)
    record_of(job, 1, "cut")
    newest = max(Path(".regional/store/cut").glob("latents/*/*.safetensors"), key=lambda state: state.stem)
    newest.unlink()
    again = record_of(job, 1, "cut")
    assert (picture_of(again) == first).all()
    assert again["steps_computed"] > 0


@pytest.mark.e2e
@pytest.mark.parametrize("model", MODELS)
def test_three_regions_with_loras_and_a_controlnet_survive_a_kill(model: str, workdir: Path) -> None:
    job = workdir / "three_regions.json"
    job.write_text(json.dumps(three_regions(model) | {"steps": 12}))
    env = environment(workdir / "home") | {"REGIONAL_KEEP": "all"}
    whole = render_json([job, "--out", workdir / "whole", "--store", "whole-store"], workdir, env)
    kill_and_render_again(job, 3, whole, workdir, env)


@pytest.mark.parametrize(("composition", "name"), [("joint", "x"), ("sequential", "latent")])
def test_a_region_s_control_steers_its_region_alone(composition: str, name: str) -> None:
    """In one step nothing reaches the rest of the canvas: there, the latent is what it is without the control."""

    def latent(region: dict[str, Any]) -> Tensor:
        record = record_of(asked(regions=[region], steps=1, composition=composition))
        return load_file(f".regional/store/store/{record['latents']}.safetensors")[name]

    plain, steered = latent(LEAVES), latent(LEAVES | {"controls": [used("sd", "a")]})
    # The sequential node reaches over the edge of its mask, by 10 pixels.
    torch.testing.assert_close(plain[..., 10:], steered[..., 10:], atol=1e-4, rtol=1e-5)
    assert (plain - steered)[..., :8].abs().mean() > 0.05


def rows_by_step(**fields: Any) -> list[tuple[int, int]]:
    """Rows of the network and of ControlNets, of each step."""
    cost = prepare(parse_job(asked(**fields))).cost
    return [(count.evaluations, count.control_rows) for count in cost.per_step]


def test_a_window_is_steps_of_the_job() -> None:
    assert rows_by_step(controls=[used("sd", "a")]) == [(2, 2)] * 4
    assert rows_by_step(controls=[used("sd", "a", start=0.25, end=0.8)]) == [(2, 0), (2, 2), (2, 2), (2, 0)]
    # As in diffusers, steps count as a whole: the first of four is from 0 to a quarter.
    assert rows_by_step(controls=[used("sd", "a", start=0.1, end=0.5)]) == [(2, 0), (2, 2), (2, 0), (2, 0)]
    assert rows_by_step(controls=[used("sd", "t")]) == [(2, 0)] * 4, "it works before the first step"


def test_a_sampler_that_asks_twice_is_steered_by_the_level_that_it_asks_for() -> None:
    # Heun asks at both ends of a step, but for the last one.
    job = {"sampler": "heun", "controls": [used("sd", "a", start=0.25, end=0.5)]}
    assert rows_by_step(**job) == [(4, 2), (4, 2), (4, 0), (2, 0)]


def test_the_window_of_a_region_is_on_the_job_s_schedule_in_both_compositions() -> None:
    region = LEAVES | {"controls": [used("sd", "a", end=0.5)]}
    joint = rows_by_step(regions=[region])
    assert [controls for _, controls in joint] == [2, 2, 0, 0]
    one_after_the_other = rows_by_step(regions=[region], composition="sequential", sampler="euler")
    assert sum(controls for _, controls in one_after_the_other) == 4


def test_outside_of_its_window_a_row_is_as_without_a_control() -> None:
    region = LEAVES | {"controls": [used("sd", "a", end=0.5)]}
    # Base and region share their negative row as soon as nothing steers one of them alone.
    assert rows_by_step(regions=[region]) == [(4, 2), (4, 2), (3, 0), (3, 0)]


def test_who_has_the_same_controls_shares_rows() -> None:
    a = used("sd", "a")

    def rows(**fields: Any) -> int:
        return prepare(parse_job(asked(**fields))).cost.evaluations

    assert rows(regions=[LEAVES]) == rows(regions=[LEAVES], controls=[a]) == 4 * 3, "the region has the job's"
    assert rows(regions=[LEAVES | {"controls": []}], controls=[a]) == 4 * 4
    assert rows(regions=[LEAVES | {"controls": [a]}], controls=[a]) == 4 * 3
    shutil.copytree("sd-a", "copy")
    shutil.copy("1.png", "copy.png")
    again = a | {"file": "copy", "image": "copy.png"}
    assert rows(regions=[LEAVES | {"controls": [again]}], controls=[a]) == 4 * 3, "by content"


def test_no_strength_is_no_control() -> None:
    plain = record_of(asked())
    none = record_of(asked(controls=[used("sd", "a", strength=0.0)]), store="none")
    assert none["job_hash"] == plain["job_hash"]
    assert torch.equal(latent_of(plain), latent_of(none, "none"))


def test_a_job_is_known_by_what_its_files_hold() -> None:
    def job_hash(*controls: dict[str, Any]) -> str:
        return prepare(parse_job(asked(controls=list(controls)))).job_hash

    a, b = used("sd", "a", strength=0.5), used("sd", "b", "2.png")
    shutil.copytree("sd-a", "copy")
    assert job_hash(a, b) == job_hash(b, a) == job_hash(a | {"file": "copy"}, b)
    others = [{"image": "2.png"}, {"strength": 0.6}, {"start": 0.5}, {"end": 0.5}, {"fit": "stretch"}]
    different = [(), (a,), (b,), (a, b), *((a | other,) for other in others)]
    assert len({job_hash(*controls) for controls in different}) == len(different)


def test_a_picture_may_lie_on_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    answer = UNetDenoiser.__call__

    def looked_at(network: UNetDenoiser, x: Tensor, levels: Any, told: Conditioning, *adapters: Any) -> Tensor:
        seen.extend(control.source.picture for row in adapters[0] for control in row.controls)
        return answer(network, x, levels, told, *adapters)

    monkeypatch.setattr(UNetDenoiser, "__call__", looked_at)
    Image.new("RGB", (64, 64), (255, 128, 0)).save("orange.png")
    control = used("sd", "a", "orange.png", place="region", fit="contain")
    region = {"prompt": "leaves", "mask": {"x": 0.5, "y": 0.25, "width": 0.25, "height": 0.5}, "feather": 16}
    record_of(asked(regions=[region | {"controls": [control]}], steps=1))
    # The mask is 32 pixels wide and 64 high: the square picture lies in its middle, the rest is black.
    expected = torch.zeros(1, 3, 128, 128)
    expected[0, :, 48:80, 64:96] = torch.tensor([255, 128, 0])[:, None, None] / 255
    assert seen
    assert all(torch.equal(picture, expected) for picture in seen)


def test_jobs_with_different_controls_share_their_forwards() -> None:
    kinds = {"a": [used("sd", "a")], "other picture": [used("sd", "a", "2.png")], "t": [used("sd", "t")], "none": []}
    jobs = [
        NamedJob(name=name, job=parse_job(asked(controls=controls, prompt=f"a {name}")))
        for name, controls in kinds.items()
    ]
    alone = [latent_of(record_of(one.job.model_dump(mode="json"))) for one in jobs]
    done = asyncio.run(shard.fn(jobs, store=".regional/store/together", keep="final"))
    assert (done["drawn"], done["forwards"]) == (4, 4)
    for one, expected in zip(jobs, alone, strict=True):
        record = record_of(one.job.model_dump(mode="json"), store="together")
        assert record["steps_computed"] == 0
        torch.testing.assert_close(latent_of(record, "together"), expected, atol=1e-4, rtol=1e-4)


def test_a_record_tells_the_files_and_no_paths(workdir: Path) -> None:
    control = used("sd", "a") | {"file": str(workdir / "sd-a"), "image": str(workdir / "1.png")}
    record = record_of(asked(controls=[control], steps=1))
    assert record["files"]["controls.0.file"]["name"] == "sd-a"
    assert record["files"]["controls.0.image"]["name"] == "1.png"
    assert str(workdir) not in str(record["job"])


def test_memory_and_plan_tell_of_it() -> None:
    plain, steered = prepare(parse_job(asked())), prepare(parse_job(asked(controls=[used("sd", "a", end=0.5)])))
    network = next(iter(steered.inputs.controls.values()))
    assert steered.memory_bytes() > plain.memory_bytes() + network.weight_bytes(Placement())
    assert plain.controls() == []
    (line,) = steered.controls()
    assert "sd-a is a ControlNet, strength 1, from 0 to 0.5" in line
