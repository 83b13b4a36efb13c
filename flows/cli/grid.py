"""The commands `regional grid` and `regional batch`: many pictures and a sheet of all."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from prefect_regional_diffusion.flows.cli import stopping
from prefect_regional_diffusion.flows.cli.calling import AsFlowRun, server_for
from prefect_regional_diffusion.flows.cli.options import (
    AsJson,
    Out,
    Overrides,
    StoreUrl,
    check_places,
    draws,
    in_context,
    prepares_once,
    progress,
    warn,
)
from prefect_regional_diffusion.flows.cli.printing import evaluations_in_words, say, say_path
from prefect_regional_diffusion.flows.common.environment import trust_the_caller
from prefect_regional_diffusion.flows.common.errors import IncompleteRenderError
from prefect_regional_diffusion.flows.common.spent_time import spent

ParallelShards = Annotated[
    int | None,
    typer.Option(
        min=1, max=64, metavar="N", help="Draw N shards at a time, as runs of shard/shard. Default: in this process."
    ),
]
PerShard = Annotated[
    int | None,
    typer.Option("--per-shard", min=1, max=256, metavar="N", help="Most pictures that one run draws. Default: 32."),
]


def grid(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="The grid job, as YAML or JSON.")],
    store: StoreUrl = None,
    out: Out = None,
    parallel_shards: ParallelShards = None,
    per_shard: PerShard = None,
    set_: Overrides = None,
    as_flow_run: AsFlowRun = False,
    as_json: AsJson = False,
) -> None:
    """Draw rows and columns of variants of one job. Interrupted and started again, only what is missing is drawn."""
    draws()
    trust_the_caller()
    from prefect_regional_diffusion.tasks.inputs.job_files import read_grid

    # First, because it needs neither torch nor Prefect: mistakes are told before either is imported.
    grid_job = read_grid(file, set_ or [])
    server = server_for(as_flow_run)
    prepares_once(context)
    from prefect_regional_diffusion.flows.fan_out.draw_grid import check, draw_grid

    prepared = check(grid_job)
    warn(prepared.warnings())
    check_places(store, out)
    steps = 0 if parallel_shards else grid_job.rows * grid_job.columns * prepared.run.steps
    start = draw_grid if server is None else server.flow("grid")
    _draw(lambda: start(grid_job, parallel_shards, per_shard, store, out, file.stem[:80]), steps, as_json)


def batch(
    context: typer.Context,
    files: Annotated[str, typer.Argument(metavar="'JOBS/*.yaml'", help="Job files, below this folder.")],
    store: StoreUrl = None,
    out: Out = None,
    parallel_shards: ParallelShards = None,
    per_shard: PerShard = None,
    set_: Overrides = None,
    as_flow_run: AsFlowRun = False,
    as_json: AsJson = False,
) -> None:
    """Draw all jobs that a pattern finds. Interrupted and started again, only what is missing is drawn."""
    draws()
    trust_the_caller()
    from prefect_regional_diffusion.tasks.inputs.job_files import read_job_files

    job_files = read_job_files(files, set_ or [])
    server = server_for(as_flow_run)
    prepares_once(context)
    from prefect_regional_diffusion.flows.fan_out.draw_batch import draw_batch
    from prefect_regional_diffusion.tasks.check_jobs import prepared_files

    prepared = prepared_files(job_files)
    warn(f"{file}: {line}" for file, prepared_job in prepared.items() for line in prepared_job.warnings())
    jobs = list(job_files.values())
    check_places(store, out)
    steps = 0 if parallel_shards else sum(prepared_job.run.steps for prepared_job in prepared.values())
    start = draw_batch if server is None else server.flow("batch")
    _draw(lambda: start(tuple(jobs), "", parallel_shards, per_shard, store, out), steps, as_json)


def _draw(start: Callable[[], Any], steps: int, as_json: bool) -> None:
    """Run the flow, with a progress bar of `steps` if there are any in this process, and print what it has drawn.

    If pictures are missing, the totals are printed before IncompleteRenderError is raised.
    """
    with progress(steps, shown=steps > 0 and not as_json) as listeners:
        try:
            result = in_context(listeners, start)
        except IncompleteRenderError as error:
            if error.done:
                print(_in_words(totals(error.done)), file=sys.stderr)
            raise
    total = totals(result)
    if as_json:
        print(json.dumps(result | {"totals": total}))
        return
    for image in dict.fromkeys(path for paths in result["images"].values() for path in paths):
        say_path(image)
    say_path(result["sheet"])
    say(_in_words(total), style="dim")


def totals(result: dict[str, Any]) -> dict[str, Any]:
    """Of what `grid` or `batch` returns: pictures' jobs and their cost, and the seconds since this process started,
    in all and by stage.

    Where shards were drawn on other machines, what they cost is not known here: None.
    """
    shard_results: list[dict[str, Any]] = result["counted"]
    stages = Counter[str]()
    for part in shard_results:
        stages.update(part["seconds"])
    costs = ("drawn", "found", "evaluations", "canvas_evaluations", "forwards")
    return {
        "jobs": len(result["images"]) + len(result["missing"]),
        **{name: sum(part[name] for part in shard_results) if shard_results else None for name in costs},
        "missing": len(result["missing"]),
        "shards": result["shards"],
        "seconds": round(time.monotonic() - stopping.BEGAN, 1),
        "stages": dict(stages),
    }


def _in_words(total: dict[str, Any]) -> str:
    shards = f"{total['shards']} shard{'' if total['shards'] == 1 else 's'}"
    if total["drawn"] is None:
        num_present = total["jobs"] - total["missing"]
        return f"{num_present} there, {total['missing']} missing, in {shards} on other machines, {total['seconds']} s"
    equal = total["jobs"] - total["drawn"] - total["found"] - total["missing"]
    return (
        f"{total['drawn']} drawn, {total['found']} found finished, "
        + (f"{equal} equal to another, " if equal > 0 else "")
        + f"{total['missing']} missing; "
        f"{evaluations_in_words(total['evaluations'], total['canvas_evaluations'])} in {total['forwards']} forwards, "
        f"{shards}, {spent(total['stages'], total['seconds'])}"
    )
