"""Small jobs that ask for hours or gigabytes: refused by a line before that, or done at a bounded cost.

What is done is counted here, in calls and bytes; no test looks at a clock.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from prefect.exceptions import ParameterTypeError
from torch.overrides import TorchFunctionMode

from prefect_regional_diffusion.flows.batch import batch
from prefect_regional_diffusion.flows.shard import shard
from prefect_regional_diffusion.sampling_core.comfyui.masks import grown_in_latent_cells, on_lattice
from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext
from prefect_regional_diffusion.sampling_core.errors import BadInput, BadJob, RegionalError
from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob, NamedJob, cells
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.masks import rasterize as masks
from prefect_regional_diffusion.sampling_core.masks.mask_cache import DrawnMasks
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.planning import region_masks
from prefect_regional_diffusion.sampling_core.planning.compile import compose, cost
from prefect_regional_diffusion.sampling_core.planning.job_size import tensor_bytes
from prefect_regional_diffusion.sampling_core.planning.prompt_signs import WEIGHTED
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import beta_levels
from prefect_regional_diffusion.sampling_core.solvers import SOLVERS
from prefect_regional_diffusion.tasks.check_jobs import check_all
from prefect_regional_diffusion.tasks.inputs.job_files import read_jobs
from prefect_regional_diffusion.tasks.inputs.limits import check_cells, check_count, check_limits
from prefect_regional_diffusion.tasks.inputs.path_policy import image_place, store_place
from prefect_regional_diffusion.tasks.inputs.size_limits import check_jobs, check_shard, check_size
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.job_inputs import drawn_masks
from prefect_regional_diffusion.tasks.runtime.prepare import prepare


def check_job(job: Any) -> None:
    """All limits that are checked before anything is read."""
    resolved = resolve(job)
    check_limits(job, resolved)
    check_size(job, resolved)


WHOLE = {"x": 0, "y": 0, "width": 1, "height": 1}
MIDDLE = {"x": 0.25, "y": 0.25, "width": 0.5, "height": 0.5}


def refused(call: Callable[..., Any], *arguments: Any) -> RegionalError:
    with pytest.raises(RegionalError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return error.value


def not_allowed(call: Callable[..., Any], *arguments: Any) -> BadInput:
    error = refused(call, *arguments)
    assert isinstance(error, BadInput)
    return error


def job(*regions: dict[str, Any], **fields: Any) -> Any:
    return parse_job(
        {"prompt": "a", "regions": [{"prompt": "b", "mask": WHOLE} | region for region in regions]} | fields
    )


# --- masks: the same as before, at a cost that does not grow with their numbers ----------------------------


class Elements(TorchFunctionMode):
    """Counts the elements that torch's functions give back, windows of pooling times their size."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and getattr(func, "__name__", "") != "__get__":
            window = args[1] if "pool2d" in getattr(func, "__name__", "") else 1
            self.total += found.numel() * (math.prod(window) if isinstance(window, tuple) else window)
        return found


def work(draw: Callable[[], object]) -> int:
    with Elements() as counted:
        draw()
    return counted.total


def test_growing_and_feathering_far_is_no_more_work() -> None:
    """512 pixels took 500 times as long as 1; 64 such masks of 4096 x 4096, from 6 kB of job, 113 minutes."""
    mask = masks.rectangle((256, 256), 0.25, 0.25, 0.5, 0.5)
    assert work(lambda: masks.grown(mask, 100)) <= 2 * work(lambda: masks.grown(mask, 1))
    assert work(lambda: masks.feathered(mask, 200)) <= 4 * work(lambda: masks.feathered(mask, 2))
    assert work(lambda: grown_in_latent_cells(mask[None], (256, 256), 200)) <= 2 * work(
        lambda: grown_in_latent_cells(mask[None], (256, 256), 3)
    )


def test_a_polygon_of_many_points_is_not_points_times_pixels() -> None:
    points = [(0.5 + 0.4 * math.cos(i), 0.5 + 0.4 * math.sin(1.7 * i)) for i in range(1000)]
    assert work(lambda: masks.polygon((256, 256), points)) < 60 * 256 * 256


def slowly_polygonal(size: tuple[int, int], points: list[tuple[float, float]]) -> torch.Tensor:
    at_y, at_x = (torch.arange(size[0]) + 0.5) / size[0], (torch.arange(size[1]) + 0.5) / size[1]
    at_y, at_x = at_y[:, None], at_x[None]
    inside = torch.zeros(size, dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if y0 != y1:
            crosses = (at_y >= min(y0, y1)) & (at_y < max(y0, y1))
            inside ^= crosses & (at_x < x0 + (at_y - y0) * (x1 - x0) / (y1 - y0))
    return inside.float()


fractions = st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.integers(0, 64).map(lambda n: n / 64)


@given(points=st.lists(st.tuples(fractions, fractions), min_size=3, max_size=300))
def test_polygons_have_the_pixels_that_they_had(points: list[tuple[float, float]]) -> None:
    assert torch.equal(masks.polygon((48, 80), points), slowly_polygonal((48, 80), points))


def soft(seed: int, size: tuple[int, int]) -> torch.Tensor:
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return torch.where(drawn < 0.5, drawn, drawn.round())


@given(seed=st.integers(0, 999), pixels=st.integers(0, 70), size=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_growing_has_the_bits_that_it_had(seed: int, pixels: int, size: tuple[int, int]) -> None:
    mask = soft(seed, size)
    edge = 2 * pixels + 1
    wanted = F.max_pool2d(F.pad(mask[None, None], [pixels] * 4, value=-math.inf), edge, stride=1)[0, 0]
    assert torch.equal(masks.grown(mask, pixels), wanted)


@given(seed=st.integers(0, 999), factor=st.integers(2, 80), size=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_growing_in_the_original_nodes_has_the_bits_that_it_had(seed: int, factor: int, size: tuple[int, int]) -> None:
    """Even squares reach less far below and to the right; also squares that are far larger than the canvas."""
    mask = soft(seed, size)
    padded = F.pad(on_lattice(mask, (size[1], size[0])).round(), [factor // 2, factor] * 2, value=0)
    wanted = F.max_pool2d(padded[None, None], factor, stride=1)[..., : size[1], : size[0]]
    assert torch.equal(grown_in_latent_cells(mask[None], size, factor), wanted)


@given(seed=st.integers(0, 999), feather=st.integers(0, 140), size=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_a_feather_is_the_mean_of_a_square(seed: int, feather: int, size: tuple[int, int]) -> None:
    mask, reach = soft(seed, size), feather // 2
    padded = F.pad(mask.double()[None, None], [reach] * 4, mode="replicate")
    wanted = F.avg_pool2d(padded, 2 * reach + 1, stride=1)[0, 0]
    torch.testing.assert_close(masks.feathered(mask, feather).double(), wanted, rtol=0, atol=2e-6)


@given(seed=st.integers(0, 999), feather=st.integers(2, 60))
def test_a_feather_has_the_same_bits_whatever_the_order_of_its_sums(seed: int, feather: int) -> None:
    mask = soft(seed, (40, 300))
    wanted = masks.feathered(mask, feather)
    assert torch.equal(masks.feathered(mask.T, feather).T, wanted)
    assert torch.equal(masks.feathered(mask.flip(0), feather).flip(0), wanted)
    assert torch.equal(masks.feathered(mask.flip(1), feather).flip(1), wanted)


@given(seed=st.integers(0, 999), size=st.tuples(*[st.integers(1, 40)] * 2), cells_=st.tuples(*[st.integers(1, 20)] * 2))
def test_a_mask_that_has_the_lattices_size_stays_as_it_is(
    seed: int, size: tuple[int, int], cells_: tuple[int, int]
) -> None:
    """So nodes resize each mask once, and not again for each of thousands of passes."""
    once = on_lattice(soft(seed, size), cells_)
    assert torch.equal(on_lattice(once, cells_), once)


# --- each distinct mask once --------------------------------------------------------------------------------


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Everything that is drawn in pixels; nothing is remembered from earlier tests."""
    drawn_masks.cache_clear()
    found: list[object] = []
    original = masks.rasterized

    def counted(*arguments: Any) -> torch.Tensor:
        found.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(masks, "rasterized", counted)
    return found


@pytest.mark.parametrize("composition", ["joint", "sequential"])
def test_regions_with_one_mask_have_it_drawn_once(composition: str, drawings: list[object]) -> None:
    same = [{"mask": MIDDLE, "grow": 8, "feather": 9, "prompt": f"{i}"} for i in range(10)]
    asked = job(*same, {"mask": MIDDLE, "grow": 8, "feather": 8}, {"mask": MIDDLE}, composition=composition)
    inputs = prepare(asked).inputs.tensors
    assert len(drawings) == 2, "feathers of 8 and 9 are one, no grow and no feather is another"
    assert len({mask.data_ptr() for mask in inputs.values()}) == 12, "tensors that share memory cannot be written"
    assert torch.equal(inputs["0"], inputs["10"])
    assert not torch.equal(inputs["0"], inputs["11"])


def test_the_cells_of_a_grid_have_each_mask_drawn_once(drawings: list[object]) -> None:
    grid = GridJob(job=job({"mask": MIDDLE, "feather": 8}), rows=4, columns=4)
    check_all.fn(cells(grid))
    check_all.fn(cells(grid))
    assert len(drawings) == 1


def test_what_a_mask_depends_on_tells_it_from_others(drawings: list[object]) -> None:
    ways = ({}, {"width": 192}, {"composition": "sequential"})
    found = [prepare(job({"mask": MIDDLE}, **fields)).inputs.tensors["0"] for fields in (*ways, *ways)]
    assert len(drawings) == 3
    assert [tuple(mask.shape) for mask in found] == [(16, 16), (16, 24), (128, 128)] * 2


def test_masks_are_remembered_up_to_a_size() -> None:
    drawn, asked = DrawnMasks(most_bytes=3 * 4 * 64), list[str]()

    def mask(key: str) -> torch.Tensor:
        def draw() -> torch.Tensor:
            asked.append(key)
            return torch.zeros(8, 8)

        return drawn.get(key, draw)

    for key in "abcadaab":
        mask(key)
    assert "".join(asked) == "abcdb", "b was asked for the longest ago when d came"


# --- limits ---------------------------------------------------------------------------------------------------

LARGE: dict[str, Any] = {"width": 4096, "height": 4096}
WINDOWS = [{"start_at_step": i, "end_at_step": 500 + i} for i in range(1, 65)]
TOO_MUCH = {
    "sequential masks of 4 GB": (
        job(*[{}] * 64, composition="sequential", **LARGE),
        "REGIONAL_MAX_TENSOR_BYTES",
    ),
    "weights of 128 stages": (job(*WINDOWS, steps=1000, **LARGE), "REGIONAL_MAX_TENSOR_BYTES"),
    "noise that is kept": (
        job(steps=1000, sampler="euler_ancestral", noise="comfyui", **LARGE),
        "REGIONAL_MAX_TENSOR_BYTES",
    ),
    "latents of 65 participants": (job(*[{}] * 64, batch_size=16, **LARGE), "REGIONAL_MAX_TENSOR_BYTES"),
    "pictures of 128 cells, all kept until the last one is drawn": (
        job(composition="sequential", node={"name": "MaskGridNKSamplersAdvanced", "rows": 16, "columns": 8}, **LARGE),
        "finished pictures, REGIONAL_MAX_TENSOR_BYTES",
    ),
    "models": (job(*[{"model": f"m{i}"} for i in range(64)]), "REGIONAL_MAX_MODELS"),
    "a prompt": (job(prompt="x" * 400_000), "REGIONAL_MAX_PROMPT"),
    "a region's prompt": (job({"negative_prompt": "x" * 400_000}), "REGIONAL_MAX_PROMPT"),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_a_small_job_asks_for_is_refused(what: str) -> None:
    """Before anything is read or drawn: these models are nowhere."""
    asked, setting = TOO_MUCH[what]
    error = not_allowed(check_job, asked)
    assert setting in error.allowed
    assert not_allowed(prepare, asked).allowed == error.allowed


USUAL = {
    "a large canvas": job(*[{"feather": 64, "mask": MIDDLE}] * 8, **LARGE),
    "many regions": job(*[{"feather": 512, "grow": 512}] * 64, width=2048, height=2048, steps=100),
    "a node on a large canvas": job(*[{}] * 10, composition="sequential", **LARGE),
    "a batch of portraits": job(*[{}] * 10, batch_size=16, width=832, height=1216, noise="comfyui", steps=50),
    "windows": job(*WINDOWS[:16], steps=600, width=1024, height=1024),
}


@pytest.mark.parametrize("what", USUAL)
def test_what_people_draw_is_not_refused(what: str) -> None:
    check_job(USUAL[what])


def test_distinct_masks_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a job, and of all jobs of a run; equal ones count once."""
    different = [{"mask": MIDDLE | {"x": i / 100}} for i in range(4)]
    monkeypatch.setenv("REGIONAL_MAX_DRAWN_PIXELS", str(3 * 128 * 128))
    settings.cache_clear()
    check_job(job(*different[:3], *different[:3]))
    assert "REGIONAL_MAX_DRAWN_PIXELS" in str(refused(check_job, job(*different)))
    jobs = [NamedJob(name=f"{i}", job=job(different[i])) for i in range(4)]
    check_jobs(jobs[:3])
    error = not_allowed(check_jobs, jobs)
    assert (error.field, error.value) == ("jobs", 4 * 128 * 128)


def test_jobs_have_a_number() -> None:
    """5,200 of them fit into what a server takes."""
    check_count("jobs", 1000)
    jobs = [NamedJob(name=f"{i}", job=job(seed=i)) for i in range(1001)]
    for check in (check_jobs, check_all.fn):
        error = not_allowed(check, jobs)
        assert (error.field, error.value) == ("jobs", 1001)
        assert "REGIONAL_MAX_JOBS" in error.allowed


def test_jobs_of_a_run_share_the_limit_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [NamedJob(name=f"{i}", job=job(seed=i, steps=4)) for i in range(3)]
    monkeypatch.setenv("REGIONAL_MAX_EVALUATIONS", "16")
    settings.cache_clear()
    assert len(check_all.fn(jobs[:2])) == 2
    error = not_allowed(check_all.fn, jobs)
    assert (error.field, error.value) == ("jobs", 24)
    assert "REGIONAL_MAX_EVALUATIONS" in error.allowed


def test_rows_have_a_limit_and_no_more_are_counted() -> None:
    asked = job({"mask": MIDDLE}, steps=1000, batch_size=16, width=64, height=64)
    run = prepare(asked).run
    assert [count.evaluations for count in cost(run, most=100).per_step] == [32, 48, 48]
    assert settings().max_evaluations == 10**6
    os.environ["REGIONAL_MAX_EVALUATIONS"] = "100"
    settings.cache_clear()
    assert not_allowed(prepare, asked).value == 128


def test_jobs_of_a_shard_share_its_memory() -> None:
    jobs = [
        NamedJob(name=f"{i}", job=job({"mask": MIDDLE | {"x": i / 100}}, composition="sequential", **LARGE))
        for i in range(20)
    ]
    check_shard(jobs[:8])
    assert "of one shard" in str(refused(check_shard, jobs))
    same = [NamedJob(name=f"{i}", job=job({}, composition="sequential", seed=i, **LARGE)) for i in range(20)]
    check_shard(same)
    assert tensor_bytes(resolve(one.job) for one in same) < tensor_bytes(resolve(one.job) for one in jobs)


def test_a_grid_has_a_limit_of_its_cells() -> None:
    assert "REGIONAL_MAX_CELLS" in str(refused(check_cells, "rows x columns", 16, 17))


# --- counting ---------------------------------------------------------------------------------------------------


def counted_in_full(run: Any) -> list[Count]:
    """The run itself, with its latents as they are, driven without a network."""
    models = {key.model for key in run.prompts}
    encoded = dict.fromkeys(run.prompts, Conditioning({}))
    context = EvaluationContext(dict.fromkeys(models, lambda x, levels, conditioning, adapters=(): x), encoded)
    return [count for _, count in iterate(run, run.initial_state(), context)]


NODES: list[dict[str, Any]] = [
    {},
    *(
        {"composition": "sequential", "node": {"name": name}}
        for name in ("RegionalSampler", "RegionalSamplerAdvanced", "TwoSamplersForMask", "TwoAdvancedSamplersForMask")
    ),
    {
        "composition": "sequential",
        "node": {
            "name": "MaskGridNKSamplersAdvanced",
            "tile": MIDDLE,
            "rows": 2,
            "columns": 2,
            "mode": "Fork then Sample",
        },
        "regions": [],
    },
]


@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_run_is_counted_without_its_latents_as_with_them(sampler: str) -> None:
    """Counting a large canvas at full size would be hours of work, done before the count could be refused."""
    for node in NODES:
        if sampler in {"dpm_fast", "dpm_adaptive"} and not node:
            continue
        regions = [{"mask": MIDDLE}, {"mask": WHOLE, "prompt": "c"}]
        if "node" in node and node["node"]["name"].startswith("Two"):
            regions = regions[:1]
        asked = job(*regions, **({"steps": 4, "sampler": sampler, "batch_size": 2} | node))
        levels = {"embedded": beta_levels("epsilon")}
        run = compose(
            resolve(asked), levels, torch.zeros(2, 4, 16, 16), region_masks.region_masks(resolve(asked), {}, 8)
        )
        assert list(cost(run).per_step) == counted_in_full(run), node


def test_counting_computes_nothing_on_the_canvas() -> None:
    asked = job({"mask": MIDDLE}, {"mask": WHOLE, "prompt": "c"}, steps=10, width=1024, height=1024, batch_size=4)
    drawn = region_masks.region_masks(resolve(asked), {}, 8)
    run = compose(resolve(asked), {"embedded": beta_levels("epsilon")}, torch.zeros(4, 4, 128, 128), drawn)
    assert work(lambda: cost(run)) < 128 * 128 * 4


# --- texts ------------------------------------------------------------------------------------------------------


def test_a_long_run_of_digits_is_read_once() -> None:
    """Each of its digits could end one part of a number and begin the next: 400 kB took hours."""
    assert WEIGHTED.search("(sea:" + "1" * 300_000 + "x") is None
    for weighted in ("(sea: 1.2)", "(a sea:1)", "(sea:.5 )"):
        assert WEIGHTED.search(weighted)
    for plain in ("(sea)", "(sea: big)", "sea: 1", "(sea: 1.)"):
        assert not WEIGHTED.search(plain)


@pytest.mark.parametrize("name", ["s3:" + ":" * 300_000, "s3:" + ":" * 4000, "a/" * 200_000, "a" * 300_000])
def test_a_long_name_is_refused_before_it_is_resolved(name: str) -> None:
    """Colons were compared with each other, three by three."""
    assert refused(image_place, "init_image", name).field == "init_image"
    assert refused(store_place, name).field == "store"


def test_few_of_many_mistakes_are_told() -> None:
    """80,000 unknown fields fit into a job file; each is compared with all that there are."""
    with pytest.raises(BadJob) as error:
        parse_job({"prompt": "a"} | {f"x{i}": 1 for i in range(80_000)})
    assert 10 < len(error.value.mistakes) <= 200


@pytest.mark.parametrize("pattern", ["**/" * 5 + "*.yaml", "*/" * 8 + "*.yaml", "a/" * 3000 + "*.yaml", "?" * 200_000])
def test_patterns_walk_through_a_folder_once(pattern: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several ** walks through all folders that the one before it has found."""
    assert refused(read_jobs, pattern).field == "files"


def test_job_files_are_counted_before_they_are_read(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONAL_MAX_JOBS", "3")
    settings.cache_clear()
    for i in range(3):
        Path(f"{i}.yaml").write_text("prompt: a")
        Path(f".{i}.yaml").write_text("prompt: a")
    assert len(read_jobs("**/*.yaml")) == 3
    Path("3.yaml").write_text("no job")
    assert "REGIONAL_MAX_JOBS" in str(refused(read_jobs, "*.yaml"))


# --- what comes over a server -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flow", "number"), [(batch, 1001), (shard, 257)], ids=["batch", "shard"])
def test_the_server_has_the_number_of_jobs_in_its_schema(flow: Any, number: int) -> None:
    """5,200 jobs with 166 million rows fit into 482 kB."""
    jobs = [{"name": f"{i}", "job": {"prompt": "a", "steps": 1000, "batch_size": 16}} for i in range(number)]
    with pytest.raises(ParameterTypeError, match="at most"):
        flow.validate_parameters({"jobs": jobs})
    flow.validate_parameters({"jobs": jobs[:-1]})


def test_a_batch_is_refused_before_its_jobs_are_prepared(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "prefect_regional_diffusion.tasks.runtime.preparations.prepare", lambda *_: pytest.fail("prepared")
    )
    monkeypatch.setenv("REGIONAL_MAX_JOBS", "2")
    settings.cache_clear()
    jobs = tuple(NamedJob(name=f"{i}", job=job(seed=i)) for i in range(3))
    with pytest.raises(BadInput, match="REGIONAL_MAX_JOBS"):
        asyncio.run(batch.fn(jobs))
    with pytest.raises(BadInput, match="REGIONAL_MAX_JOBS"):
        asyncio.run(shard.fn(list(jobs)))
    monkeypatch.delenv("REGIONAL_MAX_JOBS")
    settings.cache_clear()
    heavy = [NamedJob(name="a", job=job(*[{}] * 10, composition="sequential", seed=i, **LARGE)) for i in range(1)]
    monkeypatch.setenv("REGIONAL_MAX_TENSOR_BYTES", str(2**20))
    settings.cache_clear()
    with pytest.raises(BadInput, match="REGIONAL_MAX_TENSOR_BYTES"):
        asyncio.run(batch.fn(tuple(heavy)))
