"""The command `regional plan`: what a job, a grid or many jobs will cost, without loading weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from prefect_regional_diffusion.flows.cli.options import AsJson, Overrides, prepares_once
from prefect_regional_diffusion.flows.cli.printing import cell, say
from prefect_regional_diffusion.flows.common.environment import trust_the_caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prefect_regional_diffusion.sampling_core.engine.batching import Count
    from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob, NamedJob
    from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
    from prefect_regional_diffusion.sampling_core.planning.compile import Cost
    from prefect_regional_diffusion.sampling_core.planning.shared_cost import BatchCost
    from prefect_regional_diffusion.tasks.runtime.batch_plan import BatchPlan

Plannable = Annotated[
    Path,
    typer.Argument(
        metavar="JOB.yaml", help="A job, a grid, or a pattern of job files: 'jobs/*.yaml'.", show_default=False
    ),
]


def plan(context: typer.Context, job: Plannable, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Say what a job will cost, without loading weights: evaluations, forwards, memory, warnings.

    Of a grid or of many jobs: what they cost when one process draws them.
    """
    trust_the_caller()
    from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob
    from prefect_regional_diffusion.tasks.inputs.job_files import read_any, read_job_files

    # First, because it needs no torch: mistakes are told before it is imported.
    if not job.exists() and any(sign in str(job) for sign in "*?["):
        job_files = read_job_files(str(job), set_ or [])
        prepares_once(context)
        _plan_batch(job_files, as_json=as_json)
        return
    parsed_job = read_any(job, set_ or [])
    prepares_once(context)
    if isinstance(parsed_job, GridJob):
        _plan_grid(job, parsed_job, as_json=as_json)
    else:
        _plan_job(job, parsed_job, as_json=as_json)


def _plan_job(file: Path, job: RenderJob, *, as_json: bool) -> None:
    from prefect_regional_diffusion.tasks.runtime.preparations import preparations

    prepared = preparations().look_up(job)
    cost = prepared.cost
    stages = [
        {
            "first_step": first,
            "last_step": last,
            "rows": count.evaluations,
            "canvas_evaluations": float(count.canvases),
            "forwards": count.forwards,
            "control_rows": count.control_rows,
        }
        for first, last, count in cost.runs()
    ]
    facts: dict[str, Any] = {
        "job_hash": prepared.job_hash,
        "steps": prepared.run.steps,
        "evaluations": cost.evaluations,
        "canvas_evaluations": float(cost.canvases),
        "forwards": cost.forwards,
        "control_rows": cost.control_rows,
        "rows_per_step": stages,
        "saved": prepared.savings(),
        "loras": prepared.loras(),
        "controls": prepared.controls(),
        "image_prompts": prepared.image_prompts(),
        "memory_bytes": prepared.memory_bytes(),
        "warnings": prepared.warnings(),
    }
    if as_json:
        print(json.dumps(facts))
        return
    title = cell(f"{file.name[:60]}: {prepared.run.steps} steps")
    columns: dict[str, Callable[[Count], str]] = {
        "Rows per step": lambda count: str(count.evaluations),
        "Forwards per step": lambda count: str(count.forwards),
    }
    if cost.canvases < cost.evaluations:
        columns["Canvases per step"] = lambda count: f"{float(count.canvases):.4g}"
    if cost.control_rows:
        columns["Rows of ControlNets"] = lambda count: str(count.control_rows)
    table = Table("Steps", *columns, title=title)
    for steps, count in _rows_of_equal_cost(cost):
        table.add_row(steps, *(written(count) for written in columns.values()))
    console = Console()
    console.print(table)
    _tell_evaluations(console, cost)
    _tell_controls(console, cost.control_rows)
    for saved in facts["saved"]:
        say(f"Saved: {saved}", style="dim")
    for lora in facts["loras"]:
        say(f"LoRA: {lora}", style="dim")
    for control in facts["controls"]:
        say(f"Control: {control}", style="dim")
    for prompt in facts["image_prompts"]:
        say(f"IP-Adapter: {prompt}", style="dim")
    console.print(f"Memory: about {facts['memory_bytes'] / 1e6:.0f} MB")
    _warn(facts["warnings"])


def _rows_of_equal_cost(cost: Cost) -> list[tuple[str, Count]]:
    """Steps of the same cost: as stretches, or where these are many, as how many there are of each."""
    step_ranges = cost.runs()
    if len(step_ranges) > 8:
        return [(f"{number} of {len(cost.per_step)}", count) for count, number in Counter(cost.per_step).items()]
    return [(f"{first}" if first == last else f"{first} to {last}", count) for first, last, count in step_ranges]


def _plan_grid(file: Path, grid: GridJob, *, as_json: bool) -> None:
    from prefect_regional_diffusion.flows.fan_out.draw_grid import check
    from prefect_regional_diffusion.sampling_core.job.grid_job import cells, distinct
    from prefect_regional_diffusion.tasks.check_jobs import checked
    from prefect_regional_diffusion.tasks.inputs.limits import check_cells
    from prefect_regional_diffusion.tasks.runtime.batch_plan import plan_batch

    check_cells("rows x columns", grid.rows, grid.columns)
    check(grid)
    jobs = cells(grid)
    prepared = {named_job.name: checked(named_job) for named_job in dict.fromkeys(distinct(jobs).values())}
    batch_plan = plan_batch(jobs, prepared)
    warnings = list(dict.fromkeys(line for prepared_job in prepared.values() for line in prepared_job.warnings()))
    if as_json:
        facts = {"cells": len(jobs), **_facts(batch_plan), "warnings": warnings}
        print(json.dumps(facts | {"rows": grid.rows, "columns": grid.columns}))
        return
    console = Console()
    say(f"{file.name}: {grid.rows} x {grid.columns} cells")
    _tell(console, batch_plan, len(jobs), "cells")
    _warn(warnings)


def _plan_batch(job_files: Mapping[Path, NamedJob], *, as_json: bool) -> None:
    from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
    from prefect_regional_diffusion.tasks.check_jobs import prepared_files
    from prefect_regional_diffusion.tasks.runtime.batch_plan import plan_batch

    prepared = prepared_files(job_files)
    jobs = [NamedJob(name=named_job.name, job=prepared[file].job) for file, named_job in job_files.items()]
    batch_plan = plan_batch(jobs, {named_job.name: prepared[file] for file, named_job in job_files.items()})
    rows: list[dict[str, Any]] = [
        {
            "file": str(file),
            "name": job_files[file].name,
            "job_hash": prepared_job.job_hash,
            "steps": prepared_job.run.steps,
            "evaluations": prepared_job.cost.evaluations,
            "canvas_evaluations": float(prepared_job.cost.canvases),
            "forwards": prepared_job.cost.forwards,
            "warnings": prepared_job.warnings(),
        }
        for file, prepared_job in prepared.items()
    ]
    if as_json:
        print(json.dumps({"jobs": rows, **_facts(batch_plan)}))
        return
    columns = {"Steps": "steps", "Evaluations": "evaluations", "Forwards": "forwards"}
    if any(row["canvas_evaluations"] < row["evaluations"] for row in rows):
        columns["Of the canvas"] = "canvas_evaluations"
    table = Table("Job", *columns, title="Each alone")
    for row in rows:
        table.add_row(cell(row["file"]), *(f"{row[column]:.6g}" for column in columns.values()))
    console = Console()
    console.print(table)
    _tell(console, batch_plan, len(job_files), "jobs")
    _warn(f"{row['file']}: {line}" for row in rows for line in row["warnings"])


def _facts(batch_plan: BatchPlan) -> dict[str, Any]:
    facts = {"distinct": batch_plan.distinct, "shards": batch_plan.shards, **batch_plan.cost._asdict()}
    return facts | {"canvas_evaluations": float(facts.pop("canvases"))}


def _tell(console: Console, batch_plan: BatchPlan, number: int, unit: str) -> None:
    cost = batch_plan.cost
    equal = f", {number - batch_plan.distinct} of them equal to another" if number > batch_plan.distinct else ""
    shared = f", and {cost.shared_steps} that others compute as well" if cost.shared_steps else ""
    console.print(f"Together: {number} {unit}{equal}; {cost.steps} steps{shared}", soft_wrap=True)
    _tell_evaluations(console, cost)
    _tell_controls(console, cost.control_rows)
    parts = "1 shard" if batch_plan.shards == 1 else f"{batch_plan.shards} shards"
    console.print(f"In one process, {parts}, forwards of up to {cost.most_rows} rows")
    console.print(f"With --parallel-shards or --per-shard, {unit} share fewer forwards and steps", style="dim")


def _tell_evaluations(console: Console, cost: Cost | BatchCost) -> None:
    work = f", the work of {float(cost.canvases):.4g} of the canvas" if cost.canvases < cost.evaluations else ""
    console.print(
        f"Evaluations (network rows): {cost.evaluations}{work}; forwards (network calls): {cost.forwards}",
        soft_wrap=True,
    )


def _tell_controls(console: Console, rows: int) -> None:
    if rows:
        console.print(f"ControlNets answer {rows} rows beside these, each about half the work of a network row")


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        say(f"Warning: {warning}", style="yellow")
