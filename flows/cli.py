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
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from flows import cli_grid, cli_plan, cli_store, stopping, submit
from flows.calling import AsFlowRun, called, server_for
from flows.cli_parts import AsJson, JobFile, Out, Overrides, StoreUrl, check_places, draws, in_context, progress, warn
from flows.environment import set_defaults, trust_the_caller
from flows.errors import NotDrawnError
from flows.printing import say, say_path
from flows.server_trouble import explained
from flows.spent_time import spent
from sampling_core.errors import BadJob, RegionalError
from sampling_core.plain_text import plain_lines

if TYPE_CHECKING:
    from tasks.preparing import Prepared

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
    server = server_for(as_flow_run)
    prepared = _prepare(job, set_)
    check_places(store, out)
    warn(prepared.warnings())
    from flows.render import render as render_flow

    with progress(prepared.run.steps, shown=not as_json) as on_step:
        start = called(render_flow, server)
        record = in_context(on_step, lambda: start(prepared.job, chunk, store, out, job.stem[:80]))
    if as_json:
        print(json.dumps(record))
        return
    for image in record["images"]:
        say_path(image)
    say(
        f"{record['steps_computed']} steps computed, {record['steps_restored']} restored, "
        f"{record['evaluations']} evaluations in {record['forwards']} forwards, "
        f"{spent(record['seconds'], time.monotonic() - stopping.BEGAN)}",
        style="dim",
    )


def _prepare(file: Path, overrides: list[str] | None) -> Prepared:
    trust_the_caller()
    from tasks.files import read_job
    from tasks.preparing import prepare

    return prepare(read_job(file, overrides or []))


app.command()(cli_plan.plan)
app.command()(cli_grid.grid)
app.command()(cli_grid.batch)
app.command()(submit.submit)


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
    except BadJob as error:
        _complain(error.mistakes)
    except RegionalError as error:
        _complain([error])
    except NotDrawnError as error:
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
    from tasks.secrets import hide_keys

    hide_keys()
    print(plain_lines(traceback.format_exc()), file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
