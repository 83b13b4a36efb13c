"""Jobs with image prompts: one forward a step, resumed, shared, and known by what their files hold."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.flows.shard import shard
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import BadJob, parse_job
from prefect_regional_diffusion.sampling_core.models import image_encoder
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.flux_transformer import FluxDenoiser
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.tasks.machine.settings import Keep
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.linked_models import link
from tests.tiny_flow_models import tiny_flux
from tests.tiny_ip_adapters import PLAIN, PLUS, image_prompt_files
from tests.tiny_models import tiny_sd

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
MIDDLE = {"x": 0.25, "y": 0, "width": 0.5, "height": 0.5}
RIGHT = {"x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5}
FAMILIES: dict[str, tuple[Callable[[Path], str], type]] = {
    "sd": (tiny_sd, UNetDenoiser),
    "flux": (tiny_flux, FluxDenoiser),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each family, with a model, adapters, an image encoder and pictures."""
    folder = tmp_path_factory.mktemp("made")
    for family, (make, _) in FAMILIES.items():
        (folder / family).mkdir()
        image_prompt_files(folder / family, make(folder / family / "model"), flux=family == "flux")
    return folder


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def placed(made: Path, workdir: Path) -> Callable[[str], None]:
    """Links the files of a family."""
    return lambda family: link(made / family, workdir)


@pytest.fixture
def sd(placed: Callable[[str], None]) -> None:
    placed("sd")


def used(image: str = "red.png", **fields: Any) -> dict[str, Any]:
    return {"file": PLAIN, "image": image} | fields


def asked(**fields: Any) -> dict[str, Any]:
    job = {"model": "model", "prompt": "a red circle", "width": 128, "height": 128, "seed": 3, "steps": 4, "cfg": 4.0}
    return job | {"sampler": "euler", "scheduler": "simple", "base_only_steps": 0} | fields


def three_regions(**fields: Any) -> dict[str, Any]:
    """One image, another with another strength, and both."""
    red, blue = used("red.png", strength=0.8), used("blue.png", strength=-0.5)
    return asked(
        regions=[
            {"prompt": "green leaves", "mask": LEFT, "image_prompts": [red]},
            {"prompt": "blue water", "mask": MIDDLE, "image_prompts": [blue]},
            {"prompt": "green leaves", "mask": RIGHT, "image_prompts": [red, blue]},
        ],
        **fields,
    )


def record_of(
    job: Mapping[str, Any], checkpoint_steps: int | None = None, store: str = "store", keep: Keep | None = None
) -> dict[str, Any]:
    place = f".regional/store/{store}"
    return asyncio.run(render.fn(parse_job(job), checkpoint_steps=checkpoint_steps, store=place, keep=keep))


def latent_of(record: Mapping[str, Any], store: str = "store") -> Tensor:
    tensors = load_file(Path(".regional/store") / store / f"{record['latents']}.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors) if tensors[name].dtype == torch.float32])


def test_a_job_of_regions_with_images_takes_one_forward_a_step(
    family: str, placed: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    placed(family)
    denoiser = FAMILIES[family][1]
    answer: Any = denoiser.__call__
    rows, images = list[int](), list[list[int]]()

    def compared(
        network: Any, x: Tensor, levels: Any, told: Conditioning, adapters: list[RowAdapters] | tuple[()] = ()
    ) -> Tensor:
        """The answers, after each is found to be that of a forward of its own."""
        found = answer(network, x, levels, told, adapters)
        rows.append(len(x))
        images.append([len(row.images) for row in adapters])
        for i in range(len(x)):
            row = slice(i, i + 1)
            alone = answer(network, x[row], levels[row], told.rows(row), adapters[row])
            torch.testing.assert_close(found[row], alone, atol=1e-5 * max(1.0, levels[i].sigma), rtol=0)
        return found

    monkeypatch.setattr(denoiser, "__call__", compared)
    planned = prepare(parse_job(three_regions())).cost
    record = record_of(three_regions())
    # Base and three regions; with cfg, four negative rows, of one strength or two.
    assert rows == [8 if family == "sd" else 4] * 4
    assert sorted(images[0]) == ([0, 0, 1, 1, 1, 1, 2, 2] if family == "sd" else [0, 1, 1, 2])
    assert (record["forwards"], record["evaluations"]) == (planned.forwards, planned.evaluations) == (4, sum(rows))


@pytest.mark.usefixtures("sd")
def test_rows_without_images_are_those_of_a_job_without_any() -> None:
    """And images draw in their own regions."""
    region = {"prompt": "a red circle", "mask": LEFT}
    plain = record_of(asked(regions=[region], cfg=1.0))
    looking = record_of(asked(regions=[region | {"image_prompts": [used()]}], cfg=1.0))
    one, other = (latent_of(record).unflatten(0, (-1, 16, 16))[:4] for record in (plain, looking))
    apart = (one - other).abs()
    assert apart[:, :, :6].mean() > 0.1
    assert apart[:, :, :6].mean() > 3 * apart[:, :, 10:].mean()


@pytest.mark.parametrize("composition", ["joint", "sequential"])
def test_it_goes_on_to_the_same_bits(family: str, composition: str, placed: Callable[[str], None]) -> None:
    placed(family)
    job = three_regions(composition=composition, width=64, height=64)
    job["regions"][0]["image_prompts"][0] |= {"start": 0.25, "end": 0.75}
    whole = latent_of(record_of(job))
    record_of(job, 1, "cut")
    newest = max(Path(".regional/store/cut").glob("latents/*/*.safetensors"), key=lambda state: state.stem)
    newest.unlink()
    again = record_of(job, 1, "cut")
    assert torch.equal(latent_of(again, "cut"), whole)
    assert again["steps_computed"] > 0


@pytest.mark.usefixtures("sd")
def test_rows_are_shared() -> None:
    def rows(**fields: Any) -> int:
        return prepare(parse_job(asked(**fields))).cost.evaluations

    region, red, blue = {"prompt": "green leaves", "mask": LEFT}, used(), used("blue.png")
    other = {"prompt": "blue water", "mask": RIGHT}
    assert rows(regions=[region]) == rows(regions=[region], image_prompts=[red]) == 4 * 3, "the region has the job's"
    assert rows(regions=[region | {"image_prompts": []}], image_prompts=[red]) == 4 * 4
    shutil.copy("red.png", "copy.png")
    copied = region | {"image_prompts": [red | {"image": "copy.png"}]}
    assert rows(regions=[copied], image_prompts=[red]) == 4 * 3, "by content"
    both = [region | {"image_prompts": [red]}, other | {"image_prompts": [blue]}]
    assert rows(regions=both) == 4 * 5, "what stands for no image is the same, whatever the image"
    late = region | {"image_prompts": [red | {"start": 0.5}]}
    assert rows(regions=[late]) == 2 * 3 + 2 * 4, "out of its share of the steps, a row is like any other"


@pytest.mark.usefixtures("sd")
def test_an_image_counts_in_its_share_of_the_steps() -> None:
    def latents(store: str, *prompts: dict[str, Any]) -> list[Tensor]:
        """After each step."""
        record_of(asked(image_prompts=list(prompts)), 1, store, "all")
        states = Path(f".regional/store/{store}/latents").glob("*/*.safetensors")
        return [load_file(state)["x"] for state in sorted(states, key=lambda file: file.stem)]

    plain, late, early = latents("plain"), latents("late", used(start=0.5)), latents("early", used(end=0.5))
    assert [torch.equal(*both) for both in zip(plain, late, strict=True)] == [True, True, False, False]
    assert not any(torch.equal(*both) for both in zip(plain, early, strict=True))


@pytest.mark.usefixtures("sd")
def test_a_share_of_the_steps_without_a_step_is_refused() -> None:
    region = {"prompt": "x", "mask": LEFT, "image_prompts": [used(start=0.3, end=0.4)]}
    with pytest.raises(BadInput, match=r"^regions\.0\.image_prompts\.0\.end: .*at least one step more than start"):
        prepare(parse_job(asked(regions=[region])))
    with pytest.raises(BadJob, match=r"image_prompts\.0\.end"):
        parse_job(asked(image_prompts=[used(start=0.5, end=0.5)]))


@pytest.mark.usefixtures("sd")
def test_a_job_is_known_by_what_its_files_hold() -> None:
    def job_hash(*prompts: dict[str, Any]) -> str:
        return prepare(parse_job(asked(image_prompts=list(prompts)))).job_hash

    red, blue = used(strength=0.5), used("blue.png")
    shutil.copy(PLAIN, "copy.safetensors")
    shutil.copytree("image_encoder", "encoder")
    copied = red | {"file": "copy.safetensors", "image_encoder": "encoder"}
    assert job_hash(red, blue) == job_hash(blue, red) == job_hash(copied, blue)
    assert job_hash(red | {"strength": 0.0}) == job_hash()
    windows = [red | {"start": 0.5}, red | {"end": 0.5}]
    different = [(), (red,), (blue,), (red, blue), (red | {"file": PLUS},), (red | {"strength": 0.6},)]
    different += [(window,) for window in windows]
    assert len({job_hash(*prompts) for prompts in different}) == len(different)


@pytest.mark.usefixtures("sd")
def test_images_are_encoded_once_and_their_encoder_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    load, loaded = image_encoder.load_network, list[weakref.ref[Any]]()

    def remembered(*of: Any) -> Any:
        network = load(*of)
        loaded.append(weakref.ref(network))
        return network

    answer = UNetDenoiser.__call__
    in_memory: list[bool] = []

    def looked_at(network: UNetDenoiser, *of: Any) -> Tensor:
        gc.collect()
        in_memory.append(any(encoder() is not None for encoder in loaded))
        return answer(network, *of)

    monkeypatch.setattr(image_encoder, "load_network", remembered)
    monkeypatch.setattr(UNetDenoiser, "__call__", looked_at)
    record_of(three_regions())
    assert (len(loaded), in_memory) == (1, [False] * 4)
    record_of(three_regions(seed=4))
    assert len(loaded) == 1, "the store has what was made of them"


@pytest.mark.usefixtures("sd")
def test_jobs_with_different_images_share_their_forwards() -> None:
    prompts = {"red": [used()], "blue": [used("blue.png", file=PLUS)], "none": []}
    jobs = [
        NamedJob(name=name, job=parse_job(asked(image_prompts=own, prompt=f"a {name}")))
        for name, own in prompts.items()
    ]
    alone = [latent_of(record_of(one.job.model_dump(mode="json"))) for one in jobs]
    done = asyncio.run(shard.fn(jobs, store=".regional/store/together", keep="final"))
    assert (done["drawn"], done["forwards"]) == (3, 4)
    for one, expected in zip(jobs, alone, strict=True):
        record = record_of(one.job.model_dump(mode="json"), store="together")
        assert record["steps_computed"] == 0
        torch.testing.assert_close(latent_of(record, "together"), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("sd")
def test_a_record_tells_the_files_and_no_paths(workdir: Path) -> None:
    place = {"file": str(workdir / PLAIN), "image": str(workdir / "red.png")}
    record = record_of(asked(image_prompts=[place | {"image_encoder": str(workdir / "image_encoder")}], steps=1))
    told = {name: record["files"][f"image_prompts.0.{name}"]["name"] for name in (*place, "image_encoder")}
    assert told == {"file": PLAIN, "image": "red.png", "image_encoder": "image_encoder"}
    assert str(workdir) not in json.dumps(record["job"])
