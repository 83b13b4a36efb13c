"""Jobs with attention composition on each family that takes it: drawn as planned, resumed, split, with adapters."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.flux_transformer import FluxDenoiser
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.models.sd3_transformer import SD3Denoiser
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.linked_models import link
from tests.reference_pipelines import Picture
from tests.tiny_controls import control_models
from tests.tiny_controls import used as control
from tests.tiny_flow_models import tiny_flux, tiny_sd3, tiny_z_image
from tests.tiny_ip_adapters import PLAIN, image_prompt_files
from tests.tiny_loras import save_lora, tiny_lora

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
ROUND = {"center_x": 0.6, "center_y": 0.5, "radius_x": 0.3, "radius_y": 0.4}
WHOLE = {"x": 0, "y": 0, "width": 1, "height": 1}
REGIONS = [{"prompt": "green leaves", "mask": LEFT, "feather": 24}, {"prompt": "a Cat", "mask": ROUND}]
FAMILIES = {"sd": UNetDenoiser, "xl": UNetDenoiser, "sd3": SD3Denoiser, "flux": FluxDenoiser}
ROWS = {"sd": 2, "xl": 2, "sd3": 2, "flux": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models by family, with LoRAs; controls of the UNets, and images for the first of them."""
    folder = control_models(tmp_path_factory.mktemp("models"))
    image_prompt_files(folder, folder / "sd")
    tiny_sd3(folder / "sd3")
    tiny_flux(folder / "flux")
    tiny_z_image(folder / "z-image")
    for family in ("sd", "xl"):
        save_lora(tiny_lora(folder / family, 1).peft(), folder / f"{family}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def models(made: Path, workdir: Path) -> None:
    """Links to them."""
    link(made, workdir)


def asked(family: str, **fields: Any) -> dict[str, Any]:
    job = {"model": family, "prompt": "a red circle", "width": 192, "height": 128, "seed": 3, "steps": 4, "cfg": 4.0}
    rest = {"sampler": "euler", "scheduler": "simple", "composition": "attention", "regions": REGIONS}
    return job | rest | fields


def record_of(job: Mapping[str, Any], checkpoint_steps: int | None = None, store: str = "store") -> dict[str, Any]:
    return asyncio.run(
        render.fn(parse_job(job), checkpoint_steps=checkpoint_steps, store=f".regional/store/{store}", keep="all")
    )


def picture_of(record: Mapping[str, Any]) -> Picture:
    with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
        return np.asarray(picture).astype(int)


Answers = Callable[[Tensor, Any, Conditioning, list[RowAdapters]], Tensor]


def watched(family: str, monkeypatch: pytest.MonkeyPatch, watch: Callable[[Answers, Any], None]) -> list[int]:
    """The rows of each forward to come; `watch` is given what answers, and with what it is asked."""
    denoiser, rows = FAMILIES[family], list[int]()
    answer: Any = denoiser.__call__

    def watching(
        network: Any, x: Tensor, levels: Any, told: Conditioning, adapters: list[RowAdapters] | tuple[()] = ()
    ) -> Tensor:
        rows.append(len(x))
        if adapters:
            watch(lambda *asked: answer(network, *asked), (x, levels, told, adapters))
        return answer(network, x, levels, told, adapters)

    monkeypatch.setattr(denoiser, "__call__", watching)
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_a_job_is_drawn_in_one_forward_a_step_as_planned(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is answered as in a forward of its own."""
    seen = list[int]()

    def compare(answers: Answers, given: tuple[Any, ...]) -> None:
        x, levels, told, adapters = given
        seen.extend(len(row.prompts) for row in adapters)
        found = answers(*given)
        for i in range(len(x)):
            row = slice(i, i + 1)
            alone = answers(x[row], levels[row], told.rows(row), adapters[row])
            torch.testing.assert_close(found[row], alone, atol=1e-5 * max(1.0, levels[i].sigma), rtol=0)

    rows = watched(family, monkeypatch, compare)
    planned = prepare(parse_job(asked(family))).cost
    record = record_of(asked(family))
    assert rows == [ROWS[family]] * 4
    assert sorted(seen) == [*[0] * 4 * (ROWS[family] - 1), *[3] * 4]
    assert (record["evaluations"], record["forwards"]) == (planned.evaluations, planned.forwards) == (sum(rows), 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_goes_on_to_the_same_bits_from_every_step(family: str) -> None:
    regions = [REGIONS[0] | {"start_at_step": 1, "end_at_step": 3}, REGIONS[1]]
    job = asked(family, regions=regions, sampler="dpmpp_2m")
    first = picture_of(record_of(job, 1))
    for done in range(4):
        states = sorted(Path(".regional/store/store/latents").rglob("*.safetensors"), key=lambda file: file.stem)
        for state in states[done:]:
            state.unlink()
        shutil.rmtree(".regional/store/store/pictures", ignore_errors=True)
        again = record_of(job, 1)
        assert again["steps_computed"] == 4 - done
        assert (picture_of(again) == first).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_forwards_of_one_row_draw_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = [REGIONS[0] | ({"negative_prompt": "blur"} if family != "flux" else {}), REGIONS[1]]
    whole = picture_of(record_of(asked(family, regions=regions)))
    monkeypatch.setenv("REGIONAL_MAX_FORWARD_ROWS", "1")
    settings.cache_clear()
    record = record_of(asked(family, regions=regions), store="other")
    assert record["forwards"] == record["evaluations"] == 4 * ROWS[family]
    assert np.abs(picture_of(record) - whole).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_one_prompt_on_the_whole_canvas_draws_the_plain_picture(family: str) -> None:
    """A region that covers the base, and regions of the base's prompt: to the last bit, as they are plain rows."""
    plain = picture_of(record_of(asked(family, regions=[])))
    covered = asked(family, prompt="never seen", regions=[{"prompt": "a red circle", "mask": WHOLE}])
    equal = asked(family, regions=[region | {"prompt": "a red circle"} for region in REGIONS])
    for store, job in (("covered", covered), ("equal", equal)):
        record = record_of(job, store=store)
        assert record["evaluations"] == 4 * ROWS[family]
        assert (picture_of(record) == plain).all()
    assert np.abs(picture_of(record_of(asked(family), store="other")) - plain).mean() > 1, "else, regions are seen"


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_adapters_of_the_job_act_on_all_prompts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one prompt has the canvas, a row is that prompt's with LoRAs, a ControlNet, a T2I-Adapter and an image."""
    compared = list[int]()

    def compare(answers: Answers, given: tuple[Any, ...]) -> None:
        x, levels, told, adapters = given
        (i,) = [i for i, row in enumerate(adapters) if row.prompts]
        row, shown = slice(i, i + 1), adapters[i]
        assert shown.loras
        assert len(shown.controls) == 2
        assert len(shown.images) == (1 if family == "sd" else 0)
        compared.append(len(shown.prompts))
        for one, prompt in enumerate(shown.prompts):
            weighted = tuple(
                other._replace(weight=torch.full_like(other.weight, float(k == one)))
                for k, other in enumerate(shown.prompts)
            )
            beside = {name: told[name][row] for name in told.tensors.keys() - prompt.conditioning.tensors.keys()}
            own = Conditioning({**beside, **prompt.conditioning.tensors}, told.repeatable)
            alone = answers(x[row], levels[row], own, [shown._replace(prompts=())])
            found = answers(x[row], levels[row], told.rows(row), [shown._replace(prompts=weighted)])
            torch.testing.assert_close(found, alone, atol=1e-5 * max(1.0, levels[i].sigma), rtol=0)
            plain = answers(x[row], levels[row], own, [RowAdapters()])
            assert float((alone - plain).abs().max()) > 1e-3

    watched(family, monkeypatch, compare)
    images = [{"file": PLAIN, "image": "red.png", "strength": 0.7}] if family == "sd" else []
    adapters = {
        "loras": [{"file": f"{family}.safetensors", "strength": 0.8}],
        "controls": [control(family, "a"), control(family, "t", "2.png")],
        "image_prompts": images,
    }
    job = asked(family, **adapters, steps=2)
    assert prepare(parse_job(job)).cost.control_rows == 4
    record_of(job)
    assert compared == [3, 3]


def test_a_prompt_changes_its_region_and_little_else() -> None:
    """On the embedded model, which is trained."""
    regions = [
        {"prompt": "a red plain circle on a yellow background", "mask": LEFT},
        {
            "prompt": "a green striped square on a blue background",
            "mask": {"x": 0.5, "y": 0, "width": 0.5, "height": 1},
        },
    ]
    job = asked("embedded", prompt="a black background", regions=regions, steps=8, cfg=1.5, width=256)
    one = picture_of(record_of(job))
    job["regions"] = [regions[0] | {"prompt": "a cyan dotted triangle on a purple background"}, regions[1]]
    change = np.abs(picture_of(record_of(job)) - one).mean(axis=(0, 2))
    assert change[:112].mean() > 40
    assert change[144:].mean() < 0.2 * change[:112].mean()


def test_a_family_without_it_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match="composition: 'attention' is not allowed; allowed: joint: no two prompts share"):
        prepare(parse_job(asked("z-image")))
    prepare(parse_job(asked("z-image", regions=[])))
    with pytest.raises(
        BadInput, match="arrangement: 'attention' is not allowed; allowed: rows or auto: no two prompts"
    ):
        prepare(parse_job(asked("z-image", composition="joint", arrangement="attention")))
    rows, auto = (
        prepare(parse_job(asked("z-image", composition="joint", arrangement=name))) for name in ("rows", "auto")
    )
    assert rows.cost == auto.cost


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_rows_and_rows_of_their_own_are_one_forward(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joint composition: the base and two regions share a row, two others theirs, and one has another cfg."""
    seen = list[list[int]]()

    def compare(answers: Answers, given: tuple[Any, ...]) -> None:
        x, levels, told, adapters = given
        seen.append(sorted(len(row.prompts) for row in adapters))
        found = answers(*given)
        for i in range(len(x)):
            row = slice(i, i + 1)
            alone = answers(x[row], levels[row], told.rows(row), adapters[row])
            torch.testing.assert_close(found[row], alone, atol=1e-5 * max(1.0, levels[i].sigma), rtol=0)

    watched(family, monkeypatch, compare)
    corner = {"x": 0.75, "y": 0.5, "width": 0.25, "height": 0.5}
    pair = [{"prompt": name, "mask": corner, "feather": 16, "sampler": "dpmpp_2m"} for name in ("snow", "blue water")]
    single = {"prompt": "a dog", "mask": corner, "cfg": 3.0}
    job = asked(
        family, composition="joint", arrangement="attention", regions=[*REGIONS, *pair, single], base_only_steps=1
    )
    planned, record = prepare(parse_job(job)), record_of(job)
    negatives = ROWS[family] - 1
    assert seen == [[0] * (1 + negatives) + [2, 3]] * 3
    assert [count.evaluations for count in planned.cost.per_step] == [ROWS[family], *[3 + negatives] * 3]
    assert (record["evaluations"], record["forwards"]) == (planned.cost.evaluations, planned.cost.forwards)
