"""GridJob: which picture is in which cell, what is refused, and how cells become shards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefect_regional_diffusion.sampling_core.engine.joint_sampling_run import JointSamplingRun
from prefect_regional_diffusion.sampling_core.job.fields import MAX_SEED
from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob, NamedJob, cells, distinct
from prefect_regional_diffusion.sampling_core.job.parsing import BadJob, parse_grid
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.job.sharding import MAX_BYTES, shards
from prefect_regional_diffusion.sampling_core.planning.joint import joint
from prefect_regional_diffusion.sampling_core.planning.region_masks import region_masks
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import beta_levels
from tests.problems import prompt_of

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
MIDDLE = {"center_x": 0.5, "center_y": 0.5, "radius_x": 0.3, "radius_y": 0.3}
JOB: dict[str, Any] = {"prompt": "a sea", "steps": 6, "seed": 7, "regions": [{"prompt": "a boat", "mask": LEFT}]}


def grid(**fields: Any) -> GridJob:
    return parse_grid({"job": JOB} | fields)


def forked(*own: dict[str, Any], job: dict[str, Any] | None = None, **fields: Any) -> GridJob:
    return grid(job=JOB | (job or {}), mode="Sample then Fork", cells=own, **fields)


def run_of(job: RenderJob) -> JointSamplingRun:
    empty = torch.zeros(1, 4, job.height // 8, job.width // 8)
    return joint(resolve(job), beta_levels("v_prediction"), empty, region_masks(resolve(job), {}, 8))


def test_each_cell_has_a_seed_of_its_own() -> None:
    found = cells(grid(rows=2, columns=3))
    assert [named.name for named in found] == ["r0c0", "r0c1", "r0c2", "r1c0", "r1c1", "r1c2"]
    assert [named.job.seed for named in found] == [7, 8, 9, 10, 11, 12]
    assert all(named.job.model_copy(update={"seed": 7}) == found[0].job for named in found)


def test_seeds_wrap_and_a_cell_may_name_its_own() -> None:
    found = cells(grid(job=JOB | {"seed": MAX_SEED}, cells=[{"row": 1, "column": 0, "seed": 3, "prompt": "a lake"}]))
    assert [named.job.seed for named in found] == [MAX_SEED, 0, 3, 2]
    assert [named.job.prompt for named in found] == ["a sea", "a sea", "a lake", "a sea"]


@pytest.mark.parametrize("overlap", ["weight", "order"])
def test_a_fork_changes_the_base_and_nothing_else(overlap: str) -> None:
    """Up to the fork the plans are the same; after it, every cell of the canvas shares as in the job itself."""
    job = {"regions": [*JOB["regions"], {"prompt": "a moon", "mask": MIDDLE, "feather": 40}], "overlap": overlap}
    grid_job = forked({"row": 0, "column": 1, "prompt": "a lake"}, job=job, fork_at_step=4)
    plain, fork = (run_of(named.job).plan for named in cells(grid_job)[:2])
    assert torch.equal(run_of(cells(grid_job)[0].job).noised, run_of(cells(grid_job)[1].job).noised)
    for step in range(6):
        base = "fork" if step >= 4 else "base"
        one = {prompt_of(p): weight for p, weight in plain.active(step).values()}
        two = {prompt_of(p): weight for p, weight in fork.active(step).values()}
        assert {p.name for p, _ in fork.active(step).values()} & {"base", "fork"} == {base}
        assert {"a lake" if step >= 4 and name == "a sea" else name for name in one} == set(two)
        for name, weight in one.items():
            assert torch.equal(two["a lake" if step >= 4 and name == "a sea" else name], weight)


def test_where_regions_leave_nothing_a_fork_is_not_evaluated() -> None:
    whole = {"x": 0, "y": 0, "width": 1, "height": 1}
    grid_job = forked({"row": 0, "column": 1, "prompt": "a lake"}, job={"regions": [{"prompt": "fog", "mask": whole}]})
    names = {p.name for p, _ in run_of(cells(grid_job)[1].job).plan.active(5).values()}
    assert names == {"region 1"}


def test_half_of_the_steps_are_shared_unless_said() -> None:
    assert forked().fork_step == 3
    assert forked(fork_at_step=5).fork_step == 5
    assert grid().fork_step == 0


def test_equal_cells_are_drawn_once() -> None:
    one, two = {"row": 0, "column": 1, "prompt": "a lake"}, {"row": 1, "column": 1, "prompt": "a lake"}
    drawn = distinct(cells(forked(one, two)))
    assert {name: named.name for name, named in drawn.items()} == {
        "r0c0": "r0c0",
        "r0c1": "r0c1",
        "r1c0": "r0c0",
        "r1c1": "r0c1",
    }
    assert len(set(distinct(cells(grid(rows=16, columns=16))).values())) == 256


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"rows": 17}, "rows: 17 is not allowed; allowed: at most 16"),
        ({"colums": 2}, "colums: 2 is not allowed; allowed: columns (did you mean this?)"),
        ({"job": {"promt": "x"}}, "job.promt: 'x' is not allowed; allowed: prompt (did you mean this?), model, "),
        ({"job": JOB | {"stesp": 2}}, "job.stesp: 2 is not allowed; allowed: steps (did you mean this?)"),
        ({"job": JOB | {"steps": 0}}, "job.steps: 0 is not allowed; allowed: 1 or more"),
        ({"job": JOB | {"base_only_steps": 6}}, "job.base_only_steps: 6 is not allowed; allowed: 0 to 5"),
        ({"job": JOB | {"batch_size": 2}}, "job.batch_size: 2 is not allowed; allowed: 1: each cell is one picture"),
        ({"job": {"prompt": "x", "regions": [{"mask": LEFT, "prompt": "y", "wieght": 1}]}}, "job.regions.0.wieght: 1"),
        ({"fork_at_step": 3}, "fork_at_step: 3 is not allowed; allowed: left out with Fork then Sample"),
        ({"mode": "Sample then Fork", "fork_at_step": 6}, "fork_at_step: 6 is not allowed; allowed: 1 to 5"),
        ({"mode": "Sample then Fork", "job": JOB | {"steps": 1}}, "job.steps: 1 is not allowed; allowed: 2 or more"),
        ({"cells": [{"row": 2, "column": 0}]}, "cells.0.row: 2 is not allowed; allowed: 0 to 1 (less than rows)"),
        ({"cells": [{"row": 0, "column": 5}]}, "cells.0.column: 5 is not allowed; allowed: 0 to 1 (less than columns)"),
        ({"cells": [{"row": 0, "column": 0}] * 2}, "cells.1: [0, 0] is not allowed; allowed: one entry for each cell"),
        ({"cells": [{"row": 0, "column": 0, "sede": 1}]}, "cells.0.sede: 1 is not allowed; allowed: seed (did you"),
        (
            {"mode": "Sample then Fork", "cells": [{"row": 0, "column": 0, "seed": 1}]},
            "cells.0.seed: 1 is not allowed; allowed: left out with Sample then Fork: cells that share steps",
        ),
        (
            {"mode": "Sample then Fork", "job": JOB | {"composition": "sequential"}},
            "job.composition: 'sequential' is not allowed; allowed: joint or attention with Sample then Fork",
        ),
    ],
)
def test_mistakes_get_one_line(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(BadJob) as caught:
        grid(**fields)
    assert str(caught.value).startswith(line)


def test_round_trip_through_json() -> None:
    asked = forked({"row": 0, "column": 1, "prompt": "a lake"})
    assert GridJob.model_validate_json(asked.model_dump_json()) == asked


def named(number: int, prompt: str = "x") -> list[NamedJob]:
    return [NamedJob(name=f"job {i}", job=RenderJob(prompt=prompt)) for i in range(number)]


@given(st.integers(0, 300), st.integers(0, 9), st.integers(1, 40) | st.none())
def test_shards_hold_every_job_once_in_order(number: int, machines: int, most: int | None) -> None:
    jobs = named(number)
    parts = shards(jobs, machines, most)
    assert [job for part in parts for job in part] == jobs
    assert all(0 < len(part) <= (most or 32) for part in parts)
    assert len(parts) >= min(machines, number)
    assert max(map(len, parts), default=0) - min(map(len, parts), default=0) <= 1
    assert len(parts) == number or not len(parts) % max(machines, 1)


def test_shards_of_long_jobs_stay_small_enough_for_a_server() -> None:
    parts = shards(named(24, "x" * 100_000), 1)
    assert all(sum(len(job.model_dump_json()) for job in part) < 1.5 * MAX_BYTES for part in parts)
