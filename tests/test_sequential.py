"""Jobs with sequential composition: a job gives the picture that was recorded, and goes on bit-equal from any step."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass, replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import SequentialSamplingRun
from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import EvaluationContext
from prefect_regional_diffusion.sampling_core.job.comfyui_node import NODES, MaskGridNKSamplersAdvanced
from prefect_regional_diffusion.sampling_core.job.parsing import BadJob, parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.planning.compile import cost
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from prefect_regional_diffusion.sampling_core.planning.sequential import sequential
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import beta_levels
from tests.conformance import GOLDENS
from tests.conformers.nodes import node
from tests.conformers.passes import LEVELS, context
from tests.problems import GaussianData
from tests.problems import using as problem
from tests.recordings import SCALING, Case, Recordings, tolerance

RECORDINGS = Recordings(GOLDENS)
SIDE = {"x": 0, "y": 0, "width": 0.5, "height": 1}
_FIELDS = {node.__name__: set(node.model_fields) for node in NODES}
_OF_THE_JOB = {"seed", "noise_seed", "steps", "base_only_steps", "denoise", "cfg"}


def job_of(case: Case) -> RenderJob | None:
    """The job that asks for what a case recorded; None where jobs have no words for it."""
    samplers = case["samplers"]
    base, node = samplers[case["base_sampler"]], case["node"]
    if case["expect"]["type"] != "tensor":
        return None
    if "source" in case or "flags" in case or not isinstance(case["latent"], str):
        return None
    if RECORDINGS.latent(case["latent"]).shape[1] != 4 or "fall back" in case["notes"]:
        return None
    params = dict(case["params"])
    # ComfyUI's strings for switches.
    params = {name: value == "enable" if value in {"enable", "disable"} else value for name, value in params.items()}
    regions = case.get("regions", [])
    if node.startswith("Two"):
        regions = [{"sampler": case["mask_sampler"]}]
    if node == "TwoSamplersForMask":
        inside = samplers[case["mask_sampler"]]
        params |= {f"mask_{name}": inside[name] for name in ("seed", "steps", "denoise")}
        params |= {name: base[name] for name in ("seed", "steps", "denoise")}
    fields = {"seed": params.get("seed", params.get("noise_seed"))}
    fields |= {name: params[name] for name in ("steps", "base_only_steps", "denoise") if name in params}
    own = {name: value for name, value in params.items() if name in set.union(*_FIELDS.values())}
    if "sigma_factor" in base and "sigma_factor" in _FIELDS[node]:
        own["sigma_factor"] = base["sigma_factor"]
    height, width = (8 * side for side in RECORDINGS.latent(case["latent"]).shape[2:])
    asked = fields | {
        "model": base["model"],
        "width": width,
        "height": height,
        "batch_size": len(RECORDINGS.latent(case["latent"])),
        "composition": "sequential",
        "scheduler": base["scheduler"],
        **_asked(base),
        "regions": [_region(region, samplers[region["sampler"]]) for region in regions],
        "node": {"name": node, **own},
    }
    try:
        return parse_job(asked)
    except BadJob:
        return None


def _asked(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": config["positive"],
        "negative_prompt": config["negative"],
        "sampler": config["sampler_name"],
        "cfg": config["cfg"],
    }


def _region(region: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    varies = {name: region[name] for name in region if name.startswith("variation_")}
    own = {"model": config["model"], "scheduler": config["scheduler"], "mask": SIDE}
    own |= {"sigma_factor": config.get("sigma_factor", 1.0)}
    return own | _asked(config) | varies


def _masks(case: Case) -> list[torch.Tensor]:
    if case["node"].startswith("MaskGrid"):
        return [RECORDINGS.mask(case["mask"])[0, :, :, 0]]
    if case["node"].startswith("Two"):
        return [RECORDINGS.mask(case["mask"])]
    return [RECORDINGS.mask(region["mask"]) for region in case["regions"]]


EXPRESSIBLE = [
    (case, job) for case in RECORDINGS.cases if case["group"] == "node" and (job := job_of(case)) is not None
]


@pytest.mark.parametrize(
    ("case", "job"), [pair for pair in EXPRESSIBLE if pair[0]["tier"] == "core"], ids=lambda value: _id(value)
)
def test_a_job_gives_the_recorded_picture(case: Case, job: RenderJob) -> None:
    """It is the run that `tests/test_conformance.py` draws; where it is another, its picture is looked at.

    Another one is told no negative prompt where that has no effect.
    """
    run = sequential(resolve(job), LEVELS, RECORDINGS.latent(case["latent"]) * SCALING, _masks(case))
    if not _alike(replace(run, base_only_steps=0), node(case, RECORDINGS)):
        error = (_finished(run, context(RECORDINGS)) / SCALING - RECORDINGS.expected(case)).abs()
        assert float(error.max()) <= tolerance(case)


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are equal in all their parts, tensors to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if is_dataclass(one):
        return all(_alike(getattr(one, part.name), getattr(other, part.name)) for part in dataclass_fields(one))
    return bool(one == other)


def test_a_job_of_another_mask_or_latent_is_another_run() -> None:
    case, job = next((case, job) for case, job in EXPRESSIBLE if case["node"] == "TwoSamplersForMask")
    latent, mask = RECORDINGS.latent(case["latent"]) * SCALING, RECORDINGS.mask(case["mask"])
    recorded = node(case, RECORDINGS)
    assert _alike(sequential(resolve(job), LEVELS, latent, [mask]), recorded)
    assert not _alike(sequential(resolve(job), LEVELS, latent, [mask.flip(-1)]), recorded)
    assert not _alike(sequential(resolve(job), LEVELS, latent + 1e-6, [mask]), recorded)


def _id(value: object) -> str:
    return str(value["id"]) if isinstance(value, dict) else ""


def test_most_recordings_can_be_asked_for() -> None:
    found = Counter(case["node"] for case, _ in EXPRESSIBLE)
    assert set(found) == set(_FIELDS)
    assert sum(found.values()) > 150


def _finished(run: SequentialSamplingRun, context: EvaluationContext) -> torch.Tensor:
    walk = run.initial_state()
    for reached, _ in iterate(run, walk, context):
        walk = reached
    return run.final_latents(walk)


def _job(name: str, **fields: Any) -> RenderJob:
    regions = [] if name.startswith("MaskGrid") else [{"prompt": "region", "mask": SIDE, "feather": 16}]
    own = fields.pop("node", {})
    asked = {"prompt": "base", "steps": 5, "composition": "sequential", "regions": regions} | fields
    return parse_job(asked | {"node": {"name": name} | own})


def sequential_run_of(job: RenderJob) -> SequentialSamplingRun:
    empty = torch.zeros(job.pictures, 4, job.height // 8, job.width // 8)
    return sequential(resolve(job), {"embedded": beta_levels("v_prediction")}, empty, region_masks(resolve(job), {}, 8))


def _network(run: SequentialSamplingRun) -> EvaluationContext:
    return problem(GaussianData(), {words.prompt: torch.zeros(1, 1, 1) for words in run.prompts}, "embedded")


JOBS = [
    _job("RegionalSampler", sampler="dpmpp_2m_sde"),
    _job("RegionalSamplerAdvanced", sampler="heun", node={"restore_latent": False}),
    _job("TwoSamplersForMask", sampler="dpmpp_2m", node={"mask_steps": 4}),
    _job("TwoAdvancedSamplersForMask", sampler="uni_pc", denoise=0.5),
    _job("MaskGridNKSamplersAdvanced", sampler="euler_ancestral", node={"columns": 2}),
    _job("MaskGridNKSamplersAdvanced", sampler="lms", node={"columns": 2, "rows": 2, "mode": "Fork then Sample"}),
    _job("TwoSamplersForMask", sampler="dpm_adaptive", batch_size=2),
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.node.name} {job.sampler}")
def test_goes_on_bit_equal_from_every_step(job: RenderJob) -> None:
    """Also within a pass: what a full run of one sampler has done by then is not lost."""
    run = sequential_run_of(job)
    context = _network(run)
    states = [run.initial_state(), *(state for state, _ in iterate(run, run.initial_state(), context))]
    assert [run.steps_done(state) for state in states] == list(range(run.steps + 1))
    whole = run.final_latents(states[-1])
    for state in states:
        resumed = run.from_tensors(load(save(run.to_tensors(state))))
        assert run.steps_done(resumed) == run.steps_done(state)
        for reached, _ in iterate(run, resumed, context):
            resumed = reached
        assert torch.equal(run.final_latents(resumed), whole)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.node.name} {job.sampler}")
def test_stops_where_it_is_told(job: RenderJob) -> None:
    run = sequential_run_of(job)
    context = _network(run)
    half = run.steps // 2
    *_, (reached, _) = iterate(run, run.initial_state(), context, until=half)
    assert run.steps_done(reached) == half
    assert list(iterate(run, reached, context, until=half)) == []


@pytest.mark.parametrize("job", JOBS[:-1], ids=lambda job: f"{job.node.name} {job.sampler}")
def test_plan_counts_what_is_executed(job: RenderJob) -> None:
    run = sequential_run_of(job)
    context = _network(run)
    assert list(cost(run).per_step) == [count for _, count in iterate(run, run.initial_state(), context)]


def test_a_region_that_covers_all_spares_the_base() -> None:
    """20 steps, 2 of the base alone: the base passes under an empty mask cost nothing."""
    everywhere = [{"prompt": "region", "mask": SIDE | {"width": 1}}]
    run = sequential_run_of(_job("RegionalSampler", steps=20, sampler="euler", regions=everywhere))
    assert cost(run).evaluations == 2 * (2 + 18)


def test_fork_modes_give_one_picture_per_cell() -> None:
    for job in JOBS[4:6]:
        assert isinstance(job.node, MaskGridNKSamplersAdvanced)
        run = sequential_run_of(job)
        found = _finished(run, _network(run))
        assert found.shape == (job.node.rows * job.node.columns, 4, 16, 16)
        assert len({tuple(picture.flatten().tolist()) for picture in found}) == len(found)


def test_faults_of_the_originals_are_warned_of() -> None:
    soft = sequential_run_of(_job("RegionalSampler", node={"overlap_factor": 0}))
    assert ["soft edges that no pass denoises" in text for text in soft.warnings()] == [True]
    assert ["noise of sigma" in text for text in sequential_run_of(JOBS[1]).warnings()] == [True]
    assert ["chooses its own steps" in text for text in sequential_run_of(JOBS[6]).warnings()] == [True]
    assert not sequential_run_of(_job("TwoSamplersForMask")).warnings()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"node": {"name": "TwoSamplersForMask", "rows": 2}},
            "node.rows: 2 is not allowed; allowed: with TwoSamplersForMask: name, mask_seed, mask_steps, mask_denoise",
        ),
        ({"node": 3}, "node: 3 is not allowed; allowed: a mapping"),
        (
            {"node": {"name": "regionalsampler"}},
            "node.name: 'regionalsampler' is not allowed; allowed: RegionalSampler",
        ),
        ({"node": {"name": "Other"}}, "node.name: 'Other' is not allowed; allowed: RegionalSampler, "),
        (
            {"node": {"overlap": 2}},
            "node.overlap: 2 is not allowed; allowed: with RegionalSampler: overlap_factor (did you mean",
        ),
        (
            {"node": {"name": "MaskGridNKSamplersAdvanced", "tile": {"x": 2}}},
            "node.tile.x: 2 is not allowed; allowed: at most 1",
        ),
        ({"regions": []}, "regions: '0 regions' is not allowed; allowed: 1 or more regions with RegionalSampler"),
        ({"regions.weight": 2}, "regions.0.weight: 2.0 is not allowed; allowed: left out with sequential"),
        ({"regions.variation_strength": 0.5}, "regions.0.variation_strength: 0.5 is not allowed; allowed: 0, or"),
        ({"node": {"name": "TwoSamplersForMask"}, "base_only_steps": 2}, "base_only_steps: 2 is not allowed"),
        ({"node": {"name": "RegionalSamplerAdvanced"}, "denoise": 0.5}, "denoise: 0.5 is not allowed; allowed: 1:"),
        ({"node": {"name": "RegionalSamplerAdvanced", "start_at_step": 20}}, "node.start_at_step: 20 is not allowed"),
        ({"node": {"name": "MaskGridNKSamplersAdvanced"}}, "regions: '1 regions' is not allowed; allowed: no regions"),
        (
            {"node": {"name": "MaskGridNKSamplersAdvanced"}, "regions": []},
            "node.columns: 3 is not allowed; allowed: a number that divides the width, 128 pixels",
        ),
        (
            {"composition": "joint", "node": {"name": "TwoSamplersForMask"}},
            "node: {'name': 'TwoSamplersForMask'} is not",
        ),
        ({"composition": "joint", "sampler": "dpm_adaptive"}, "sampler: 'dpm_adaptive' is not allowed; allowed: a"),
        ({"composition": "joint", "regions.sampler": "dpm_fast"}, "regions.0.sampler: 'dpm_fast' is not allowed"),
        ({"composition": "joint", "regions.scheduler": "beta"}, "regions.0.scheduler: 'beta' is not allowed"),
        (
            {"node": {"name": "TwoSamplersForMask", "mask_denoise": 1e-7}},
            "node.mask_denoise: 1e-07 is not allowed; allowed: 0.02 or more with 20 steps",
        ),
        (
            {"node": {"name": "TwoSamplersForMask", "mask_steps": 1000}, "denoise": 0.5},
            "node.mask_denoise: 0.5 is not allowed; allowed: 1 or more with 1000 steps",
        ),
        (
            {"node": {"name": "TwoSamplersForMask"}, "regions.sigma_factor": 0.8},
            "regions.0.sigma_factor: 0.8 is not allowed; allowed: left out: TwoSamplersForMask has no such parameter",
        ),
        (
            {"composition": "joint", "base_only_steps": 4, "regions.end_at_step": 3},
            "regions.0.end_at_step: 3 is not allowed; allowed: more than the base-only steps (4)",
        ),
        (
            {"composition": "joint", "regions.start_at_step": 5, "regions.end_at_step": 5},
            "regions.0.end_at_step: 5 is not allowed; allowed: more than start_at_step (5)",
        ),
        ({"batch_size": 2, "batch_index": [2]}, "batch_index: 2 is not allowed; allowed: 0 to 1"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], line: str) -> None:
    region = {"prompt": "region", "mask": SIDE}
    region |= {name.removeprefix("regions."): value for name, value in changes.items() if name.startswith("regions.")}
    asked = {"prompt": "base", "composition": "sequential", "regions": [region]}
    with pytest.raises(BadJob) as caught:
        parse_job(asked | {name: value for name, value in changes.items() if not name.startswith("regions.")})
    assert str(caught.value).startswith(line)
