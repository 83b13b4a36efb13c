"""Jobs whose regions are asked for on a part of the canvas: what networks are told, resumed runs, records, refusals."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from prefect_regional_diffusion.flows.drawing.draw_shard import draw_shard
from prefect_regional_diffusion.flows.render import render
from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.conditioning import GUIDANCE, PLACE, TIME_IDS, Conditioning, stack
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.models.unet import UNetDenoiser
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.tensors.window import Window
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.batch_plan import plan_batch
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.linked_models import link
from tests.problems import plan_of
from tests.tiny_controls import MODELS, control_models, control_picture, used
from tests.tiny_flow_models import tiny_flux, tiny_sd3, tiny_z_image
from tests.tiny_loras import asked, save_lora, tiny_lora

LEFT = {"prompt": "green leaves", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}
LOWER_RIGHT = {"prompt": "blue water", "mask": {"x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = control_models(tmp_path_factory.mktemp("models"))
    for model in MODELS:
        save_lora(tiny_lora(folder / model, 1).peft(), folder / f"{model}-lora.safetensors")
    control_picture(folder / "large.png", 3, 256, 256)
    return folder


@pytest.fixture(autouse=True)
def models(made: Path, workdir: Path) -> None:
    """Links to the models and their controls."""
    link(made, workdir)


def large(model: str = "sd", **fields: Any) -> dict[str, Any]:
    """A job on a canvas of 256 x 256 pixels, of which the models here may be shown 128 x 128, `xl` 96 x 96."""
    return asked(model, width=256, height=256) | fields


def record_of(job: dict[str, Any], checkpoint_steps: int | None = None, store: str = "store") -> dict[str, Any]:
    place = f".regional/store/{store}"
    return asyncio.run(render.fn(parse_job(job), checkpoint_steps=checkpoint_steps, store=place))


def picture_of(record: dict[str, Any]) -> Any:
    with Image.open(Path("renders") / Path(record["images"][0]).name) as picture:
        return np.asarray(picture).astype(int)


class Forward(NamedTuple):
    """What a network was asked of."""

    shape: tuple[int, ...]
    told: Conditioning
    adapters: Sequence[RowAdapters]


Forwards = Callable[[dict[str, Any]], list[Forward]]


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Forwards:
    """Renders a job, and says what its UNet was asked of."""
    answer, seen = UNetDenoiser.__call__, list[Forward]()

    def recorded(
        network: UNetDenoiser, x: Tensor, levels: Any, told: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Tensor:
        seen.append(Forward(tuple(x.shape), told, adapters))
        return answer(network, x, levels, told, adapters)

    def of_job(job: dict[str, Any]) -> list[Forward]:
        seen.clear()
        shutil.rmtree(".regional", ignore_errors=True)
        record_of(job)
        return list(seen)

    monkeypatch.setattr(UNetDenoiser, "__call__", recorded)
    return of_job


def test_sdxl_is_told_where_its_window_is(forwards: Forwards) -> None:
    """The crop is the job's and the window's place together, the size that of what it sees; the original stays."""
    sizes = {"original_width": 300, "crop_left": 8, "crop_top": 4}
    whole, seen = forwards(
        large("xl", regions=[LOWER_RIGHT], window={}, steps=1, size_conditioning=sizes, base_only_steps=0)
    )
    assert (whole.shape, seen.shape) == ((2, 4, 32, 32), (2, 4, 16, 16))
    assert whole.told[TIME_IDS].tolist() == [[256, 300, 4, 8, 256, 256]] * 2
    assert seen.told[TIME_IDS].tolist() == [[256, 300, 4 + 128, 8 + 128, 128, 128]] * 2


def by_kind(row: RowAdapters) -> dict[str, Any]:
    """What a row's controls are made of, by the names of their types."""
    return {type(control.source).__name__: control.source for control in row.controls}


@pytest.mark.parametrize("model", MODELS)
def test_what_a_control_reads_is_cut_with_the_window(model: str, forwards: Forwards) -> None:
    controls = [used(model, name, "large.png") for name in ("a", "t")]
    job = large(model, regions=[LOWER_RIGHT | {"controls": controls}], steps=1, base_only_steps=0)
    (whole,), (_, seen) = forwards(job), forwards(job | {"window": {}})
    on_canvas = next(by_kind(row) for row in whole.adapters if row.controls)
    for cut in map(by_kind, seen.adapters):
        assert torch.equal(cut["ControlNetHint"].picture, on_canvas["ControlNetHint"].picture[..., 128:, 128:])
        for found, wanted in zip(cut["AdapterMaps"].maps, on_canvas["AdapterMaps"].maps, strict=True):
            edge = wanted.shape[-1] // 2
            assert torch.equal(found, wanted[..., edge:, edge:])


@pytest.mark.parametrize("model", MODELS)
def test_it_is_drawn_as_planned_and_goes_on_to_the_same_bits(model: str) -> None:
    """Regions with a LoRA, a ControlNet and another sampler; the last step is lost and drawn again."""
    regions = [
        LEFT | {"loras": [{"file": f"{model}-lora.safetensors", "strength": 0.6}], "sampler": "heun"},
        LOWER_RIGHT | {"controls": [used(model, "a", "large.png", strength=0.8)]},
    ]
    job = large(model, regions=regions, window={"margin": 8, "full_steps": 1})
    planned = prepare(parse_job(job)).cost
    whole = record_of(job)
    assert (whole["evaluations"], whole["forwards"]) == (planned.evaluations, planned.forwards)
    assert whole["canvas_evaluations"] == float(planned.canvases) < planned.evaluations
    first = picture_of(whole)
    record_of(job, 1, "cut")
    newest = max(Path(".regional/store/cut").glob("latents/*/*.safetensors"), key=lambda state: state.stem)
    newest.unlink()
    for picture in Path(".regional/store/cut").rglob("*.png"):
        picture.unlink()
    again = record_of(job, 1, "cut")
    assert again["steps_computed"] > 0
    assert (picture_of(again) == first).all()


def flow_job(**fields: Any) -> dict[str, Any]:
    """A job of the model in the folder `flow`, without what its family has no use for."""
    job = large("flow") | fields
    return {name: value for name, value in job.items() if name not in {"cfg", "sampler", "scheduler"}}


def test_a_family_that_counts_positions_from_each_corner_is_asked_of_the_canvas() -> None:
    """A window by name is refused before anything is loaded; auto is the canvas, and the plan says so."""
    tiny_z_image(Path("flow"))
    with pytest.raises(BadInput) as found:
        prepare(parse_job(flow_job(regions=[LEFT | {"window": {"margin": 8}}])))
    assert str(found.value) == (
        "regions.0.window: {'full_steps': 0, 'margin': 8} is not allowed; allowed: canvas or auto: "
        "Z-Image takes whole canvases only"
    )
    plan = prepare(parse_job(flow_job(regions=[LEFT], window="auto")))
    assert plan.cost.canvases == plan.cost.evaluations
    assert [line for line in plan.savings() if "window" in line] == [
        "window of region 1: the whole canvas, because the model or a control takes no part of it (window: auto)"
    ]


def test_windows_are_as_large_as_the_model_was_trained_for() -> None:
    small = {"prompt": "a dot", "mask": {"x": 0.5, "y": 0.5, "width": 0.125, "height": 0.125}}
    edges = {
        model: [
            one.crop.window
            for one in plan_of(prepare(parse_job(large(model, regions=[small], window="auto"))).run).participants
            if one.crop
        ]
        for model in MODELS
    }
    assert edges == {"sd": [(8, 8, 16, 16)], "xl": [(12, 12, 12, 12)]}


def test_an_adapter_needs_a_canvas_whose_maps_can_be_cut() -> None:
    """208 pixels are 26 cells, 13 and 7 on the coarser maps: a window at multiples of four would end between two."""
    job = large(regions=[LEFT | {"controls": [used("sd", "t", "large.png")]}], width=208, window="auto")
    plan = prepare(parse_job(job))
    assert plan.cost.canvases == plan.cost.evaluations
    with pytest.raises(BadInput, match=r"^width: 208 is not allowed; allowed: a multiple of 32, for .* in a window$"):
        prepare(parse_job(job | {"window": {}}))
    plan = prepare(parse_job(job | {"regions": [LEFT | {"controls": [used("sd", "a", "large.png")]}]}))
    assert plan.cost.canvases < plan.cost.evaluations


def test_sd3_has_the_positions_of_the_canvas_in_its_windows() -> None:
    """Rows at other places in one forward: each token is embedded as it is on the canvas, whole and in the windows."""
    tiny_sd3(Path("sd3"))
    model = open_folder("sd3")
    network: Any = model.load_denoiser(Placement())
    embedded = list[Tensor]()
    network._transformer.pos_embed.register_forward_hook(lambda *called: embedded.append(called[-1]))
    canvas = torch.randn(1, 16, 32, 40, generator=torch.Generator().manual_seed(1))
    windows, level = [Window(0, 0, 16, 20), Window(12, 20, 16, 20), Window(16, 8, 16, 20)], Level(0.5, 0.5)
    told = model.load_text_encoder(Placement()).encode("a red circle")
    whole = network(canvas, [level], told)
    rows = torch.cat([window.cut(canvas) for window in windows])
    places = [told.joined(Conditioning({PLACE: torch.tensor([[one.top, one.left, 32, 40]])})) for one in windows]
    answers = network(rows, [level] * 3, stack(places))
    on_canvas = embedded[0][0].unflatten(0, (16, 20))
    for window, found in zip(windows, embedded[1], strict=True):
        top, left = window.top // 2, window.left // 2
        torch.testing.assert_close(found.unflatten(0, (8, 10)), on_canvas[top : top + 8, left : left + 10])
    centred = network(rows, [level] * 3, stack([told] * 3))
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(answers, centred, strict=True))
    everywhere = told.joined(Conditioning({PLACE: torch.tensor([[0, 0, 32, 40]])}))
    assert torch.equal(network(canvas, [level], everywhere), whole)
    assert torch.equal(network(canvas, [level], told), whole), "it is left as it was"


def test_sd3_draws_windows_as_planned() -> None:
    tiny_sd3(Path("sd3"))
    job = large("sd3", regions=[LEFT, LOWER_RIGHT], window="auto", sampler="euler")
    planned = prepare(parse_job(job)).cost
    record = record_of(job)
    assert (record["forwards"], record["canvas_evaluations"]) == (planned.forwards, float(planned.canvases))
    assert planned.canvases < planned.evaluations


def test_sd3_has_loras_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A region with a LoRA shares the forwards of another one elsewhere, and is drawn as in forwards of its own."""
    tiny_sd3(Path("sd3"))
    save_lora(tiny_lora("sd3", 1, ("transformer",)).peft(), "sd3-lora.safetensors")
    upper_left = LEFT | {"mask": {"x": 0, "y": 0, "width": 0.5, "height": 0.5}}
    plain = large("sd3", regions=[upper_left, LOWER_RIGHT], window="auto", sampler="euler")
    adapted = LOWER_RIGHT | {"loras": [{"file": "sd3-lora.safetensors", "strength": 0.8}]}
    job = plain | {"regions": [upper_left, adapted]}
    without, together = record_of(plain), record_of(job)
    assert together["forwards"] == without["forwards"]
    monkeypatch.setenv("REGIONAL_MAX_FORWARD_ROWS", "1")
    settings.cache_clear()
    alone = record_of(job, store="alone")
    assert alone["forwards"] == alone["evaluations"] > together["forwards"]
    changed = np.abs(picture_of(together) - picture_of(without))
    assert np.abs(picture_of(together) - picture_of(alone)).max() <= 1
    assert changed[128:, 128:].mean() > 1


def test_flux_has_the_positions_of_the_canvas_in_its_windows() -> None:
    """The positions that its transformer is given, for a window and for the canvas."""
    tiny_flux(Path("flow"))
    model = open_folder("flow")
    network: Any = model.load_denoiser(Placement())
    given = list[Tensor]()
    network._transformer.register_forward_pre_hook(
        lambda _, args, told: given.append(told["img_ids"]), with_kwargs=True
    )
    window, level = Window(12, 20, 16, 18), Level(0.5, 0.5)
    canvas = torch.randn(1, 16, 32, 40, generator=torch.Generator().manual_seed(1))
    told = model.load_text_encoder(Placement()).encode("a red circle").joined(Conditioning({GUIDANCE: torch.ones(1)}))
    placed = told.joined(Conditioning({PLACE: torch.tensor([[window.top, window.left, 32, 40]])}))
    network(canvas, [level], told)
    seen = network(window.cut(canvas), [level], placed)
    on_canvas = given[0].unflatten(0, (16, 20))
    assert torch.equal(given[1].unflatten(0, (8, 9)), on_canvas[6:14, 10:19])
    assert (seen - network(window.cut(canvas), [level], told)).abs().max() > 1e-4, "they matter"


def test_flux_has_a_forward_for_each_place_of_a_window() -> None:
    """Three regions of one shape, two of them at one place and so in one forward, and the base: a step of three."""
    tiny_flux(Path("flow"))
    corner = LEFT | {"mask": {"x": 0, "y": 0, "width": 0.5, "height": 0.5}}
    regions = [corner, corner | {"prompt": "grey stones"}, LOWER_RIGHT]
    job = flow_job(regions=regions, window="auto", width=768, height=768, steps=2)
    plan = prepare(parse_job(job))
    crops = [one.crop.window for one in plan_of(plan.run).participants if one.crop is not None]
    assert crops == [Window(0, 0, 64, 64), Window(0, 0, 64, 64), Window(32, 32, 64, 64)]
    count = plan.cost.per_step[-1]
    assert (count.evaluations, count.forwards, count.canvases) == (4, 3, 1 + 3 * Fraction(4, 9))
    record = record_of(job)
    assert (record["forwards"], record["canvas_evaluations"]) == (plan.cost.forwards, float(plan.cost.canvases))


def test_what_shards_cost_counts_windows_as_planned() -> None:
    """Two jobs in one shard, of which one has windows; plan and shard say the same."""
    jobs = [
        NamedJob(name=name, job=parse_job(large(regions=[LOWER_RIGHT], steps=2, window=window)))
        for name, window in (("whole", "canvas"), ("seen", "auto"))
    ]
    planned = plan_batch(jobs, {named.name: prepare(named.job) for named in jobs}).cost
    shard = asyncio.run(draw_shard(jobs))
    assert (shard["evaluations"], shard["canvas_evaluations"]) == (planned.evaluations, float(planned.canvases))
    assert shard["canvas_evaluations"] < shard["evaluations"]
