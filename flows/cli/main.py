"""The command `regional`: what it is made of, the command `render`, and how mistakes are told."""

from __future__ import annotations

import atexit
import gc
import io
import json
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from prefect_regional_diffusion.flows.cli import grid as cli_grid
from prefect_regional_diffusion.flows.cli import plan as cli_plan
from prefect_regional_diffusion.flows.cli import stopping, submit, top
from prefect_regional_diffusion.flows.cli import store as cli_store
from prefect_regional_diffusion.flows.cli.calling import AsFlowRun, server_for
from prefect_regional_diffusion.flows.cli.options import (
    AsJson,
    JobFile,
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
from prefect_regional_diffusion.flows.cli.server_errors import explained
from prefect_regional_diffusion.flows.common.environment import set_defaults, trust_the_caller
from prefect_regional_diffusion.flows.common.errors import IncompleteRenderError
from prefect_regional_diffusion.flows.common.spent_time import spent
from prefect_regional_diffusion.sampling_core.errors import RegionalError
from prefect_regional_diffusion.sampling_core.text.plain_text import plain_lines

BAD_INPUT = 2
"""Exit code for everything that a user can mend."""

MOST_MISTAKES = 50
"""Lines; a job of 500 kB may have a hundred thousand mistakes."""

app = typer.Typer(
    help="Draw pictures with different prompts and samplers in different regions of one canvas.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(cli_store.app, name="store")


def _tell_version(*, wanted: bool) -> None:
    if wanted:
        print(f"regional {version('prefect-regional-diffusion')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version",
        callback=lambda wanted: _tell_version(wanted=wanted),
        is_eager=True,
        help="Say which version this is.",
    ),
]


@app.callback()
def options(version_: Version = False) -> None:
    """Draw pictures with different prompts and samplers in different regions of one canvas."""


@app.command()
def render(
    context: typer.Context,
    job: JobFile,
    store: StoreUrl = None,
    out: Out = None,
    set_: Overrides = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, metavar="STEPS", help="Save the state after so many steps. Default: about every second."
        ),
    ] = None,
    as_flow_run: AsFlowRun = False,
    as_json: AsJson = False,
) -> None:
    """Draw the picture of a job file. Interrupted and started again, it goes on where it was."""
    draws()
    trust_the_caller()
    from prefect_regional_diffusion.tasks.inputs.job_files import read_job

    # First, because it needs neither torch nor Prefect: mistakes are told before either is imported.
    render_job = read_job(job, set_ or [])
    server = server_for(as_flow_run)
    prepares_once(context)
    from prefect_regional_diffusion.tasks.runtime.preparations import preparations

    prepared = preparations().look_up(render_job)
    check_places(store, out)
    warn(prepared.warnings())
    from prefect_regional_diffusion.flows.drawing.draw_job import draw_job

    with progress(prepared.run.steps, shown=not as_json) as listeners:
        start = draw_job if server is None else server.flow("render")
        record = in_context(listeners, lambda: start(prepared.job, chunk, store, out, job.stem[:80]))
    if as_json:
        print(json.dumps(record))
        return
    for image in record["images"]:
        say_path(image)
    evaluations = evaluations_in_words(record["evaluations"], record["canvas_evaluations"])
    say(
        f"{record['steps_computed']} steps computed, {record['steps_restored']} restored, "
        f"{evaluations} in {record['forwards']} forwards, "
        f"{spent(record['seconds'], time.monotonic() - stopping.BEGAN)}",
        style="dim",
    )


app.command()(cli_plan.plan)
app.command()(cli_grid.grid)
app.command()(cli_grid.batch)
app.command()(submit.submit)
app.command()(top.top)


def main() -> None:
    """Entry point: mistakes become one line each and exit code 2, pictures that are missing one line and code 1."""
    stopping.listen()
    set_defaults()
    # What a terminal's encoding lacks is spelled, as stderr does it; pytest and others put streams there that cannot.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # To take apart what torch has made takes a second, after the last line was printed.
    atexit.register(gc.freeze)
    try:
        app()
    except RegionalError as error:
        _complain(error.mistakes)
    except IncompleteRenderError as error:
        say(error, stderr=True)
        sys.exit(submit.NOT_COMPLETED)
    except Exception as error:  # noqa: BLE001 - it is told, and ends the program
        explanation = explained(error)
        if explanation is None:
            _tell_trace()
        _complain([explanation])


def _complain(errors: Sequence[RegionalError]) -> NoReturn:
    for error in errors[:MOST_MISTAKES]:
        print(error, file=sys.stderr)
    if len(errors) > MOST_MISTAKES:
        print("and more mistakes", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _tell_trace() -> NoReturn:
    """A fault of this program: the traceback, with what others wrote made plain in it as well."""
    from prefect_regional_diffusion.tasks.machine.secrets import hide_keys

    hide_keys()
    print(plain_lines(traceback.format_exc()), file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
