"""The command `regional`: render a job file, or say what rendering it would cost."""

from __future__ import annotations

import atexit
import gc
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows import cli_grid, cli_store, stopping, submit
from flows.calling import AsFlowRun, called, server_for
from flows.cli_parts import AsJson, JobFile, Out, Overrides, StoreUrl, check_places, draws, in_context, progress
from flows.environment import set_defaults, trust_the_caller
from flows.errors import NotDrawnError
from flows.server_trouble import explained
from flows.spent_time import spent
from sampling_core.errors import BadInput, BadJob, RegionalError

if TYPE_CHECKING:
    from sampling_core.evaluate import Count
    from sampling_core.plan import Cost
    from tasks.preparing import Prepared

BAD_INPUT = 2
"""Exit code for everything that a user can mend."""

app = typer.Typer(
    help="Draw pictures with different prompts and samplers in different regions of one canvas.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(cli_store.app, name="store")


@app.command()
def render(
    job: JobFile,
    store: StoreUrl = None,
    out: Out = None,
    set_: Overrides = None,
    chunk: Annotated[
        int | None,
        typer.Option(min=1, max=1000, metavar="STEPS", help="Save the state after so many steps. [about a second]"),
    ] = None,
    as_flow_run: AsFlowRun = False,
    as_json: AsJson = False,
) -> None:
    """Draw the picture of a job file. Interrupted and started again, it goes on where it was."""
    draws()
    server = server_for(as_flow_run)
    prepared = _prepare(job, set_)
    check_places(store, out)
    for warning in prepared.warnings():
        Console(stderr=True).print(f"Warning: {warning}", style="yellow", highlight=False)
    from flows.render import render as render_flow

    with progress(prepared.run.steps, shown=not as_json) as on_step:
        start = called(render_flow, server)
        record = in_context(on_step, lambda: start(prepared.job, chunk, store, out, job.stem[:80]))
    if as_json:
        print(json.dumps(record))
        return
    console = Console()
    for image in record["images"]:
        console.print(image, soft_wrap=True, highlight=False)
    console.print(
        f"{record['steps_computed']} steps computed, {record['steps_restored']} restored, "
        f"{record['evaluations']} evaluations in {record['forwards']} forwards, "
        f"{spent(record['seconds'], time.monotonic() - stopping.BEGAN)}",
        style="dim",
        soft_wrap=True,
    )


@app.command()
def plan(job: JobFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Say what a job will cost, without loading weights: evaluations, forwards, memory, warnings."""
    prepared = _prepare(job, set_)
    cost = prepared.cost
    stages = [
        {"first_step": first, "last_step": last, "rows": count.evaluations, "forwards": count.forwards}
        for first, last, count in cost.runs()
    ]
    facts: dict[str, Any] = {
        "job_hash": prepared.job_hash,
        "steps": prepared.run.steps,
        "evaluations": cost.evaluations,
        "forwards": cost.forwards,
        "rows_per_step": stages,
        "saved": prepared.savings(),
        "memory_bytes": prepared.memory_bytes(),
        "warnings": prepared.warnings(),
    }
    if as_json:
        print(json.dumps(facts))
        return
    table = Table("Steps", "Rows per step", "Forwards per step", title=f"{job.name}: {prepared.run.steps} steps")
    for steps, count in _told_shortly(cost):
        table.add_row(steps, f"{count.evaluations}", f"{count.forwards}")
    console = Console()
    console.print(table)
    console.print(f"Evaluations (network rows): {cost.evaluations}; forwards (network calls): {cost.forwards}")
    for saved in facts["saved"]:
        console.print(f"Saved: {saved}", style="dim")
    console.print(f"Memory: about {facts['memory_bytes'] / 1e6:.0f} MB")
    for warning in facts["warnings"]:
        console.print(f"Warning: {warning}", style="yellow")


def _told_shortly(cost: Cost) -> list[tuple[str, Count]]:
    """Steps of the same cost: as stretches, or where these are many, as how many there are of each."""
    stretches = cost.runs()
    if len(stretches) > 8:
        return [(f"{number} of {len(cost.per_step)}", count) for count, number in Counter(cost.per_step).items()]
    return [(f"{first}" if first == last else f"{first} to {last}", count) for first, last, count in stretches]


def _prepare(file: Path, overrides: list[str] | None) -> Prepared:
    trust_the_caller()
    from tasks.files import read_job
    from tasks.preparing import prepare

    return prepare(read_job(file, overrides or []))


app.command()(cli_grid.grid)
app.command()(cli_grid.batch)
app.command()(submit.submit)


def main() -> None:
    """Entry point: mistakes become one line each and exit code 2, pictures that are missing one line and code 1."""
    stopping.listen()
    set_defaults()
    # To take apart what torch has made takes a second, after the last line was printed.
    atexit.register(gc.freeze)
    try:
        app()
    except BadJob as error:
        _complain(error.mistakes)
    except RegionalError as error:
        _complain([error])
    except NotDrawnError as error:
        print(error, file=sys.stderr)
        sys.exit(submit.NOT_COMPLETED)
    except Exception as error:
        explanation = explained(error)
        if explanation is None:
            raise
        _complain([explanation])


def _complain(errors: list[BadInput] | list[RegionalError]) -> None:
    for error in errors:
        print(error, file=sys.stderr)
    sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
