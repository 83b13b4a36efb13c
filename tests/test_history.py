"""Names of states: the same for runs that agree up to a step, different for all others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prefect_regional_diffusion.sampling_core.engine.batched_runs import iterate
from prefect_regional_diffusion.sampling_core.engine.batching import EvaluationContext
from prefect_regional_diffusion.sampling_core.engine.cache_keys import segment_keys
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.family import Canvas
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.planning.compile import compose
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from tests.problems import GaussianData

LEFT = {"prompt": "left", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}
RIGHT = {"prompt": "right", "mask": {"x": 0.5, "y": 0, "width": 0.5, "height": 1}}
BASE: dict[str, Any] = {
    "prompt": "base",
    "width": 64,
    "height": 64,
    "steps": 6,
    "base_only_steps": 2,
    "regions": [LEFT],
}


def run_of(changes: dict[str, Any]) -> Any:
    job: RenderJob = parse_job(BASE | changes)
    clean = torch.zeros(job.pictures, 4, 8, 8)
    levels = open_folder("embedded").noise_schedule(Canvas(64, 64), 20)
    return compose(resolve(job), {"embedded": levels}, clean, region_masks(resolve(job), {}, 8))


def state_names(run: Any) -> list[str]:
    """The name of the state after each step."""
    segments = segment_keys(run.segments(), "test", {})
    return [next(c.name for c in reversed(segments) if c.first < step) for step in range(1, run.steps + 1)]


def common(one: dict[str, Any], two: dict[str, Any]) -> int:
    """Steps that two jobs share."""
    pairs = zip(state_names(run_of(one)), state_names(run_of(two)), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), 6)


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({}, 6),
        ({"prompt": "other"}, 0),
        ({"seed": 1}, 0),
        ({"cfg": 2.0}, 0),
        ({"steps": 7}, 0),
        ({"denoise": 0.5}, 0),
        ({"sampler": "euler"}, 0),
        ({"batch_size": 2}, 0),
        ({"scheduler": "normal"}, 0),
        ({"regions": []}, 2),
        ({"regions": [RIGHT]}, 2),
        ({"regions": [LEFT | {"prompt": "other"}]}, 2),
        ({"regions": [LEFT | {"feather": 16}]}, 2),
        ({"regions": [LEFT | {"sampler": "euler"}]}, 2),
        ({"regions": [LEFT | {"name": "for people"}]}, 6),
        ({"regions": [LEFT | {"start_at_step": 4}]}, 2),
        ({"regions": [LEFT, RIGHT | {"start_at_step": 5}]}, 5),
        ({"regions": [LEFT | {"end_at_step": 4}]}, 4),
        # Variation changes the noise that all begin with.
        ({"regions": [LEFT | {"variation_strength": 0.5, "variation_seed": 3}]}, 0),
    ],
)
def test_jobs_share_what_they_have_in_common(change: dict[str, Any], shared: int) -> None:
    assert common({}, change) == shared


@pytest.mark.parametrize(
    ("change", "shared"),
    [({}, 16), ({"regions": [RIGHT]}, 2), ({"regions": [LEFT | {"cfg": 3.0}]}, 2), ({"seed": 1}, 0)],
)
def test_the_original_node_shares_its_base_only_steps(change: dict[str, Any], shared: int) -> None:
    sequential = {"composition": "sequential", "sampler": "euler", "steps": 9}
    names = [state_names(run_of(sequential | other)) for other in ({}, change)]
    assert next((i for i, (a, b) in enumerate(zip(*names, strict=True)) if a != b), len(names[0])) == shared


@pytest.mark.parametrize(
    ("own", "shared"),
    [({}, 6), ({"sampler": "euler_ancestral"}, 2), ({"sampler": "euler_ancestral", "start_at_step": 4}, 4)],
)
def test_the_kind_of_noise_counts_from_where_somebody_draws_it(own: dict[str, Any], shared: int) -> None:
    jobs = ({"noise": noise, "regions": [LEFT | own]} for noise in ("per_step", "comfyui"))
    assert common(*jobs) == shared


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "dpmpp_sde", "sa_solver"])
def test_a_job_goes_on_from_another_jobs_state(sampler: str) -> None:
    """From the last state that two jobs share, written by the one and read by the other, to the same bits."""
    one, two = (run_of({"sampler": sampler, "regions": [region]}) for region in (LEFT, RIGHT | {"sampler": "dpm_2"}))
    prompts = [key for run in (one, two) for key in run.prompts]
    context = EvaluationContext({"embedded": GaussianData()}, dict.fromkeys(prompts, Conditioning({})))
    *_, (shared, _) = iterate(one, one.initial_state(), context, until=2)
    *_, (resumed, _) = iterate(two, two.from_tensors(one.to_tensors(shared)), context)
    *_, (whole, _) = iterate(two, two.initial_state(), context)
    assert torch.equal(resumed.x, whole.x)


def test_what_cannot_be_told_is_refused() -> None:
    run = run_of({})
    with pytest.raises(TypeError, match="object has no place"):
        segment_keys([run.segments()[0]._replace(values=object())], "test", {})
