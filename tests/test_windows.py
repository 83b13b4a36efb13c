"""Regions that the network sees a part of the canvas for: the same pictures inside, less work, the same promises."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import pad

from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext, evaluate
from prefect_regional_diffusion.sampling_core.engine.cache_keys import segment_keys
from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance, Request
from prefect_regional_diffusion.sampling_core.engine.joint_run import State
from prefect_regional_diffusion.sampling_core.engine.joint_sampling_run import JointSamplingRun
from prefect_regional_diffusion.sampling_core.errors import BadInput, BadJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.masks.windows import WindowSize, window_around
from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS, Conditioning
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.names import SamplerName
from prefect_regional_diffusion.sampling_core.planning.canonical_job import job_hash
from prefect_regional_diffusion.sampling_core.planning.compile import cost
from prefect_regional_diffusion.sampling_core.planning.joint import joint
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from prefect_regional_diffusion.sampling_core.planning.savings import savings
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level, beta_levels
from prefect_regional_diffusion.sampling_core.solvers import DenoiseRequest
from prefect_regional_diffusion.sampling_core.tensors.window import Window
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from tests.problems import PromptColors, conditionings, plan_of, prompt_of

LEVELS = beta_levels("v_prediction")
SAMPLERS = [name for name in get_args(SamplerName) if name not in {"dpm_fast", "dpm_adaptive"}]
CORNER = {"mask": {"x": 0, "y": 0, "width": 0.25, "height": 0.25}, "feather": 16, "prompt": "corner"}
MIDDLE = {"mask": {"center_x": 0.6, "center_y": 0.5, "radius_x": 0.2, "radius_y": 0.15}, "prompt": "middle"}
TALL = {"mask": {"x": 0.5, "y": 0, "width": 0.125, "height": 1}, "prompt": "tall", "sampler": "heun"}


def job(*regions: dict[str, Any], **fields: Any) -> RenderJob:
    canvas = {"width": 256, "height": 256, "steps": 6, "base_only_steps": 1}
    return parse_job({"prompt": "base", "regions": regions} | canvas | fields)


def run_of(asked: RenderJob) -> JointSamplingRun:
    """On cells of 8 pixels, for a model that takes windows of any size."""
    empty = torch.zeros(asked.pictures, 4, asked.height // 8, asked.width // 8)
    return joint(resolve(asked), LEVELS, empty, region_masks(resolve(asked), {}, 8))


class Neighbours:
    """A denoiser that sees each cell with its four neighbours, wherever it lies, and answers by the prompt."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(
        self, x: Tensor, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Tensor:
        self.shapes.append(tuple(x.shape))
        sigma = torch.tensor([level.sigma for level in levels])[:, None, None, None]
        edged = pad(x, (1, 1, 1, 1))
        around = edged[:, :, :-2, 1:-1] + edged[:, :, 2:, 1:-1] + edged[:, :, 1:-1, :-2] + edged[:, :, 1:-1, 2:]
        return torch.tanh((x + 0.25 * around) / (1 + sigma)) + conditioning[PROMPT_EMBEDS][:, :1, :1, None]


def walked(
    run: JointSamplingRun, network: Any, since: State | None = None, most: int | None = None
) -> list[tuple[State, Count]]:
    numbers = {key.prompt: torch.full((1, 1, 1), i / 4) for i, key in enumerate(dict.fromkeys(run.prompts))}
    context = EvaluationContext({"embedded": network}, conditionings(numbers, "embedded"), most)
    return list(iterate(run, since or run.initial_state(), context))


@given(
    cells=st.tuples(*[st.integers(1, 40)] * 2),
    inside=st.tuples(*[st.floats(0, 0.99)] * 4),
    size=st.builds(WindowSize, st.integers(0, 9), st.integers(1, 24), st.sampled_from([1, 2, 4, 8])),
)
def test_a_window_is_what_was_asked_for(
    cells: tuple[int, int], inside: tuple[float, float, float, float], size: WindowSize
) -> None:
    """It has the weight and the margin, is large enough, and its edges are at multiples or the canvas' own."""
    weight = torch.zeros(cells)
    spans: list[tuple[int, int]] = []
    for edge, one, other in zip(cells, inside[:2], inside[2:], strict=True):
        spans.append((int(min(one, other) * edge), int(max(one, other) * edge) + 1))
    (top, bottom), (left, right) = spans
    weight[top:bottom, left:right] = 0.1
    found = window_around([torch.zeros(cells), weight], size)
    window = Window(0, 0, *cells) if found is None else found
    for edge, (first, last), start, extent in zip(cells, spans, window[:2], window[2:], strict=True):
        assert start <= max(0, first - size.margin)
        assert min(edge, last + size.margin) <= start + extent <= edge
        assert extent >= min(edge, size.least)
        assert start % size.multiple == 0
        assert (start + extent) % size.multiple == 0 or start + extent == edge
    assert found is None or found[2:] != cells


def test_nothing_is_seen_for_nobody() -> None:
    assert window_around([torch.zeros(4, 4)], WindowSize()) is None


def test_windows_of_one_shape_share_a_forward_and_are_put_back() -> None:
    """Two at other places, and one that two regions see with one negative prompt."""
    x, level = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), Level(1.0, 2.0)
    corner, other = Window(0, 0, 4, 4), Window(2, 4, 4, 4)
    places = [None, corner, corner, other]
    guidances = [ClassifierFreeGuidance(2.0, name, "", model="embedded") for name in "abcd"]
    asked = [Request(DenoiseRequest(x, level), *one) for one in zip(guidances, places, strict=True)]
    told = conditionings({name: torch.full((1, 1, 1), float(ord(name or "-"))) for name in ["", *"abcd"]}, "embedded")
    network = Neighbours()
    answers, count = evaluate(asked, EvaluationContext({"embedded": network}, told))
    # Of each prompt two pictures; the negative row once on the canvas, once in each place.
    assert sorted(network.shapes) == [(4, 4, 8, 8), (10, 4, 4, 4)]
    assert count == Count(14, 2, shared=2, outside=Fraction(10) * 3 / 4)
    assert count.canvases == 4 + Fraction(10, 4)
    for (query, guidance, place, _), answer in zip(asked, answers, strict=True):
        seen = query.x if place is None else place.cut(query.x)
        (alone,), _ = evaluate(
            [Request(query._replace(x=seen), guidance)], EvaluationContext({"embedded": network}, told)
        )
        for found, wanted in zip(answer, alone, strict=True):
            assert found is not None
            assert wanted is not None
            assert torch.equal(found, wanted if place is None else place.paste(wanted, (8, 8)))
    assert not answers[1].denoised[:, :, 4:].any()


def test_windows_are_split_where_memory_does_not_suffice() -> None:
    """By shape: what is too much of the canvas need not be too much of a window."""

    class Small(Neighbours):
        def __call__(
            self, x: Tensor, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
        ) -> Tensor:
            if x[:, 0].numel() > 2 * 64:
                raise torch.OutOfMemoryError("no room")
            return super().__call__(x, levels, conditioning)

    x, level = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), Level(1.0, 2.0)
    places = [None, None, None, *(Window(top, left, 4, 4) for top in (0, 2, 4) for left in (0, 2, 4))]
    asked = [
        Request(DenoiseRequest(x, level), ClassifierFreeGuidance(1.0, f"{i}", "", model="embedded"), place)
        for i, place in enumerate(places)
    ]
    told = conditionings({f"{i}": torch.full((1, 1, 1), float(i)) for i in range(len(places))}, "embedded")
    small = Small()
    found, count = evaluate(asked, EvaluationContext({"embedded": small}, told))
    wanted, _ = evaluate(asked, EvaluationContext({"embedded": Neighbours()}, told))
    assert [shape[0] for shape in small.shapes] == [2, 1, 5, 4]
    assert (count.evaluations, count.forwards) == (12, 4)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.denoised, other.denoised)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "uni_pc"])
def test_what_is_protected_stays_in_windows_too(sampler: str) -> None:
    asked = [
        job(CORNER, MIDDLE, sampler=sampler, denoise=0.6, init_image="x.png", protect=[TALL["mask"]], window=window)
        for window in ("canvas", {"margin": 32})
    ]
    clean = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    protected = region_masks(resolve(job(TALL)), {}, 8)[0]
    drawn: list[Tensor] = []
    for one in asked:
        run = joint(resolve(one), LEVELS, clean, region_masks(resolve(one), {}, 8), protected)
        drawn.append(walked(run, Neighbours())[-1][0].x)
    known = protected == 1
    assert torch.equal(drawn[1][:, :, known], clean[:, :, known])
    torch.testing.assert_close(drawn[1], drawn[0], atol=1e-6, rtol=1e-6)


def test_a_window_that_grows_to_the_canvas_is_the_canvas() -> None:
    regions = [CORNER, MIDDLE, TALL]
    whole, grown = (run_of(job(*regions, window=window)) for window in ("canvas", {"margin": 256}))
    assert all(one.crop is None for one in grown.plan.participants)
    assert segment_keys(grown.segments(), [], {}) == segment_keys(whole.segments(), [], {})
    assert cost(grown) == cost(whole)
    assert torch.equal(walked(grown, Neighbours())[-1][0].x, walked(whole, Neighbours())[-1][0].x)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inside_the_margin_nothing_changes(sampler: str) -> None:
    """Of a network that sees no farther than the margin in all queries of a step: the picture is the canvas' own."""
    regions = [CORNER, MIDDLE, TALL | {"end_at_step": 4, "cfg": 1.0}]
    fields = {"sampler": sampler, "cfg": 2.0, "batch_size": 2}
    whole, seen = (run_of(job(*regions, window=window, **fields)) for window in ("canvas", {"margin": 32}))
    for (wanted, _), (state, _) in zip(walked(whole, Neighbours()), walked(seen, Neighbours()), strict=True):
        torch.testing.assert_close(state.x, wanted.x, atol=1e-6, rtol=1e-6)
    assert cost(seen).canvases < cost(whole).canvases == cost(whole).evaluations


def test_without_a_margin_it_does() -> None:
    """The stand-in does look around, so the test before this one would find it."""
    whole, seen = (run_of(job(CORNER, MIDDLE, window=window)) for window in ("canvas", {"margin": 0}))
    apart = walked(whole, Neighbours())[-1][0].x - walked(seen, Neighbours())[-1][0].x
    assert apart.abs().max() > 1e-3


@pytest.mark.parametrize("most", [None, 1, 3])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "dpmpp_2m_cfg_pp", "seeds_2", "sa_solver_pece"])
def test_plan_counts_what_is_executed(sampler: str, most: int | None) -> None:
    asked = job(CORNER, MIDDLE, TALL, sampler=sampler, cfg=2.0, window={"margin": 8, "full_steps": 3})
    run, network = run_of(asked), Neighbours()
    planned = cost(run, most)
    assert [count for _, count in walked(run, network, most=most)] == list(planned.per_step)
    assert sum(shape[0] for shape in network.shapes) == planned.evaluations
    assert sum(shape[0] * shape[2] * shape[3] for shape in network.shapes) == planned.canvases * 32 * 32
    assert len(network.shapes) == planned.forwards
    assert max(shape[0] for shape in network.shapes) <= (most or 8)


def test_first_steps_are_full() -> None:
    """Counted from the run's beginning; later ones show the base the canvas, and each region its part."""
    run, network = run_of(job(MIDDLE, TALL, sampler="euler", cfg=1.0, window={"full_steps": 3})), Neighbours()
    walked(run, network)
    of_step = [(1, 4, 32, 32)], [(3, 4, 32, 32)], [(1, 4, 32, 32), (1, 4, 10, 14), (1, 4, 32, 4)]
    heun = [(1, 4, 32, 4)]
    first, full, seen = of_step
    assert network.shapes[:1] == first
    assert network.shapes[1:5] == [*full, (1, 4, 32, 32)] * 2
    assert network.shapes[5:] == [*seen, *heun, *seen, *heun, *seen]


@pytest.mark.parametrize("stop", range(6))
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_3m_sde", "euler_ancestral", "uni_pc", "sa_solver", "deis"])
def test_resumes_bit_equal_at_every_step(stop: int, sampler: str) -> None:
    asked = job(CORNER, MIDDLE | {"start_at_step": 3}, TALL, sampler=sampler, window={"margin": 8, "full_steps": 2})
    run = run_of(asked)
    states = [run.initial_state(), *(state for state, _ in walked(run, Neighbours()))]
    resumed = run.from_tensors(load(save(run.to_tensors(states[stop]))))
    assert torch.equal(walked(run_of(asked), Neighbours(), resumed)[-1][0].x, states[-1].x)
    assert torch.isfinite(states[-1].x).all()


def test_states_before_the_first_window_are_those_of_the_canvas() -> None:
    """Two jobs that differ in their windows share what they have drawn before; later states have names of their own."""
    jobs = [job(CORNER, MIDDLE, window=window) for window in ("canvas", {"full_steps": 3}, {"full_steps": 4})]
    whole, three, four = (segment_keys(run_of(one).segments(), [], {}) for one in jobs)
    assert [segment.first for segment in whole] == [0, 1]
    assert [segment.first for segment in three] == [0, 1, 3]
    assert whole[:2] == three[:2] == four[:2]
    assert len({three[2].name, four[2].name, whole[1].name}) == 3
    assert len({job_hash(resolve(one)) for one in jobs}) == 3


def test_a_region_has_its_job_s_window_or_its_own() -> None:
    own = job(CORNER, MIDDLE | {"window": "canvas"}, TALL | {"window": {"margin": 16}}, window={"margin": 8})
    windows = [one.crop and one.crop.window for one in run_of(own).plan.participants]
    assert windows == [None, Window(0, 0, 10, 10), None, Window(0, 14, 32, 8)]
    same = [CORNER | {"window": {"margin": 8}}, MIDDLE, TALL | {"window": {"margin": 16}}]
    assert job_hash(resolve(job(*same))) == job_hash(resolve(own))


def test_a_window_has_all_cells_that_its_region_ever_has() -> None:
    """One over the other for some steps: what is then uncovered was seen before, and is remembered."""
    below = {"mask": {"x": 0, "y": 0, "width": 0.5, "height": 0.5}, "prompt": "below", "window": {}}
    above = {"mask": {"x": 0, "y": 0, "width": 0.5, "height": 0.25}, "prompt": "above", "end_at_step": 3}
    run = run_of(job(below, above, overlap="order"))
    assert run.plan.participants[1].crop is not None
    assert run.plan.participants[1].crop.window == Window(0, 0, 16, 16)
    assert not run.plan.active(1)[1][1][:8].any(), "in the second step it has the lower half alone"


def test_auto_takes_a_window_where_that_saves_enough() -> None:
    large = {"mask": {"x": 0, "y": 0, "width": 0.9, "height": 0.9}, "prompt": "large"}
    auto, asked_for = (run_of(job(CORNER, large, window=window)) for window in ("auto", {}))
    assert [one.crop is not None for one in auto.plan.participants] == [False, True, False]
    assert [one.crop is not None for one in asked_for.plan.participants] == [False, True, True]
    sentences = savings(auto, cost(auto))
    assert "window of region 1: 72 x 72 pixels, 8% of the canvas" in sentences
    assert (
        "window of region 2: the whole canvas, because a window of 82% would save less than 0.25 evaluations of the "
        "canvas a step (window: auto)"
    ) in sentences
    assert any(line.startswith("27 rows are the work of") for line in sentences)
    assert not [line for line in savings(run_of(job(CORNER)), cost(run_of(job(CORNER)))) if "window" in line]


HALVES = [
    {"mask": {"x": x, "y": 0, "width": width, "height": 1}, "prompt": f"half {x}"}
    for x, width in ((0, 0.5), (0.5, 0.5))
]
TWO_FIFTHS = [{"mask": {"x": x, "y": 0, "width": 0.40625, "height": 1}, "prompt": f"at {x}"} for x in (0, 0.59375)]


@pytest.mark.parametrize(
    ("regions", "fields", "used"),
    [
        # With guidance, a whole row shares its negative row, and a window has its own: 2 + 2 rows of the canvas with
        # the base either way, but without it 2 x 2 halves against 3.
        (TWO_FIFTHS, {"cfg": 4.0}, [False, False]),
        (HALVES, {"cfg": 4.0}, [True, True]),
        # Without guidance there is one row of each.
        (TWO_FIFTHS, {"cfg": 1.0}, [True, True]),
        # Nobody else has this negative prompt.
        ([TWO_FIFTHS[0] | {"negative_prompt": "noise"}, TWO_FIFTHS[1]], {"cfg": 4.0}, [True, False]),
        # It takes part in few steps, and not in those of most regions.
        ([*HALVES, CORNER | {"end_at_step": 1, "start_at_step": 0}], {"cfg": 4.0}, [True, True, True]),
    ],
)
def test_auto_counts_the_rows_that_a_window_adds(
    regions: list[dict[str, Any]], fields: dict[str, Any], used: list[bool]
) -> None:
    whole, auto = (run_of(job(*regions, window=window, **fields)) for window in ("canvas", "auto"))
    assert [one.crop is not None for one in auto.plan.participants[1:]] == used
    assert cost(auto).canvases < cost(whole).canvases if any(used) else cost(auto) == cost(whole)


def test_a_window_as_large_as_the_canvas_is_explained() -> None:
    everywhere = {"mask": {"x": 0, "y": 0, "width": 1, "height": 1}, "prompt": "all"}
    run = run_of(job(everywhere, window={}))
    assert "window of region 1: the whole canvas, because its window would be all of it" in savings(run, cost(run))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"window": "atuo"}, "window: 'atuo' is not allowed; allowed: auto (did you mean this?), canvas"),
        ({"window": 8}, "window: 8 is not allowed; allowed: 'canvas' or 'auto'"),
        ({"window": {"margin": -1}}, "window.margin: -1 is not allowed; allowed: 0 or more"),
        ({"window": {"margn": 1}}, "window.margn: 1 is not allowed; allowed: margin (did you mean this?), full_steps"),
        (
            {"window": "auto", "composition": "sequential"},
            "window: 'auto' is not allowed; allowed: left out with sequential composition",
        ),
    ],
)
def test_mistakes_are_one_line(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(BadJob) as found:
        parse_job({"prompt": "base", "regions": [CORNER]} | fields)
    assert str(found.value) == line


def test_a_window_without_a_step_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^window\.full_steps: 6 is not allowed; allowed: at most 5$"):
        run_of(job(CORNER, window={"full_steps": 6}))
    with pytest.raises(BadInput, match=r"^regions\.0\.window\.full_steps: 6 is not"):
        run_of(job(CORNER | {"window": {"full_steps": 6}}))


def test_sixteen_regions_are_the_work_of_two_rows() -> None:
    """The embedded model at 512 x 512, 4 x 4 regions with guidance: one evaluation of the canvas is the rows with
    their prompts, another those with their negative prompts, and all 32 are one forward."""
    places = [(x / 4, y / 4) for y in range(4) for x in range(4)]
    regions = [
        {"prompt": "a red background", "mask": {"x": x, "y": y, "width": 0.25, "height": 0.25}} for x, y in places
    ]
    asked = {"prompt": "a blue background", "width": 512, "height": 512, "steps": 10, "regions": regions}
    whole, seen = (prepare(parse_job(asked | {"window": window})) for window in ("canvas", "auto"))
    # Whole rows of equal regions are one row, so these cost less than people's regions do.
    assert [count.evaluations for count in whole.cost.per_step] == [2] * 10
    regional = seen.cost.per_step[1:]
    assert [(count.evaluations, count.forwards, count.canvases) for count in regional] == [(32, 1, 2)] * 9
    assert {one.crop.window[2:] for one in plan_of(seen.run).participants if one.crop is not None} == {(16, 16)}
    margin = prepare(parse_job(asked | {"window": {"margin": 1}})).cost.per_step[-1]
    assert margin.canvases == 2 * Fraction(2 * 20 + 2 * 24, 64) ** 2, "edges are at multiples of four cells"


def test_prompt_colors_stay_in_their_regions() -> None:
    run = run_of(job(CORNER, MIDDLE, window={}, cfg=1.0))
    colors = {key.prompt: i / 4 for i, key in enumerate(run.prompts)}
    state, _ = walked(run, PromptColors())[-1]
    weights = {prompt_of(one): weight for one, weight in run.plan.active(run.steps - 1).values()}
    wanted = sum(weight * colors[prompt] for prompt, weight in weights.items())
    torch.testing.assert_close(state.x[0, 0], wanted, rtol=1e-4, atol=1e-4)
