"""The commands `regional grid` and `regional batch`: many pictures and a sheet of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.calling import AsFlowRun, called, server_for
from flows.cli_parts import AsJson, Out, Overrides, StoreUrl, check_places, draws, in_context, progress
from flows.environment import trust_the_caller

Machines = Annotated[
    int | None,
    typer.Option(min=1, max=64, metavar="N", help="Draw on N machines, as runs of shard/shard. [in this process]"),
]
PerShard = Annotated[
    int | None, typer.Option("--per-shard", min=1, max=256, metavar="N", help="Most pictures that one run draws. [32]")
]


def grid(
    file: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="The grid job, as YAML or JSON.")],
    store: StoreUrl = None,
    out: Out = None,
    machines: Machines = None,
    per_shard: PerShard = None,
    set_: Overrides = None,
    as_flow_run: AsFlowRun = False,
    as_json: AsJson = False,
) -> None:
    """Draw rows and columns of variants of one job. Interrupted and started again, only what is missing is drawn."""
    draws()
    server = server_for(as_flow_run)
    trust_the_caller()
    from flows.grid import check
    from flows.grid import grid as grid_flow
    from tasks.files import read_grid

    asked = read_grid(file, set_ or [])
    check(asked)
    check_places(store, out)
    steps = asked.rows * asked.columns * asked.job.steps
    with progress(steps, shown=not as_json and machines is None) as on_step:
        start = called(grid_flow, server)
        done = in_context(on_step, lambda: start(asked, machines, per_shard, store, out, file.stem[:80]))
    _tell(done, as_json)


def batch(
    files: Annotated[str, typer.Argument(metavar="'JOBS/*.yaml'", help="Job files, below this folder.")],
    store: StoreUrl = None,
    out: Out = None,
    machines: Machines = None,
    per_shard: PerShard = None,
    as_flow_run: AsFlowRun = False,
    as_json: AsJson = False,
) -> None:
    """Draw all jobs that a pattern finds. Interrupted and started again, only what is missing is drawn."""
    draws()
    server = server_for(as_flow_run)
    trust_the_caller()
    from flows.batch import batch as batch_flow
    from tasks.files import read_jobs
    from tasks.runs import checked

    jobs = read_jobs(files)
    for named in jobs:
        checked(named)
    check_places(store, out)
    steps = sum(named.job.steps for named in jobs)
    with progress(steps, shown=not as_json and machines is None) as on_step:
        start = called(batch_flow, server)
        done = in_context(on_step, lambda: start(tuple(jobs), "", machines, per_shard, store, out))
    _tell(done, as_json)


def _tell(done: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(done))
        return
    console = Console()
    for image in dict.fromkeys(path for paths in done["images"].values() for path in paths):
        console.print(image, soft_wrap=True, highlight=False)
    console.print(done["sheet"], soft_wrap=True, highlight=False)
