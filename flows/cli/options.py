"""What commands share: options, the bar of steps, checks of places."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console

from prefect_regional_diffusion.flows.cli import stopping
from prefect_regional_diffusion.flows.cli.printing import say

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable

    from prefect_regional_diffusion.tasks.machine.load_listener import Load, LoadListener

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job, as YAML or JSON.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the job: seed=7, regions.0.prompt=fog."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URL", help="Folder or fsspec URL where latents are kept. Default: .regional/store."
    ),
]
Out = Annotated[str | None, typer.Option("--out", metavar="DIR", help="Folder for the pictures. Default: renders.")]


GOES_ON = "the same command goes on"


def draws() -> None:
    """Set the last line of a command that draws: the next one finds all that it has stored."""
    stopping.say(lambda: f"stopped before the first step; {GOES_ON}")


def check_places(store: str | None, out: str | None) -> None:
    """Raise StoreError or BadInput unless both can be written."""
    from prefect_regional_diffusion.tasks.inputs.path_policy import out_place, store_place
    from prefect_regional_diffusion.tasks.storage.store import Store

    Store(store_place(store)).check()
    Store(out_place(out), "--out").check()


def prepares_once(context: typer.Context) -> None:
    """What this command prepares is there for the flow that it calls."""
    from prefect_regional_diffusion.tasks.runtime.preparations import prepared_once

    context.with_resource(prepared_once())


class Listeners(NamedTuple):
    """Listeners of a flow: one is called with its finished and total steps, one with each model part that is loaded."""

    on_step: Callable[[int, int], None]
    on_load: LoadListener


@contextmanager
def progress(steps: int, *, shown: bool) -> Generator[Listeners]:
    """A bar on stderr that moves with every step, and a line for each part of a model that was loaded."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        line = bar.add_task("preparing", total=steps)
        stopping.before_last_words(bar.stop)
        work = "preparing"

        def on_step(done: int, total: int) -> None:
            nonlocal work
            work = "sampling"
            stopping.say(lambda: f"stopped after {done} of {total} steps; {GOES_ON}")
            bar.update(line, completed=done, total=total, description=work)

        def on_load(load: Load) -> None:
            loading = load.seconds is None
            bar.update(line, description=str(load) if loading else work)
            if shown and not loading:
                say(load, style="dim", console=bar.console)

        yield Listeners(on_step, on_load)


def warn(warnings: Iterable[str]) -> None:
    """Print warnings on stderr, each once."""
    for warning in dict.fromkeys(warnings):
        say(f"Warning: {warning}", style="yellow", stderr=True)


def in_context(listeners: Listeners, start: Callable[[], Coroutine[Any, Any, Any]]) -> dict[str, Any]:
    """The result of a flow that runs with these listeners."""
    from prefect_regional_diffusion.tasks.machine.load_listener import load_listener
    from prefect_regional_diffusion.tasks.machine.step_listener import began, listener

    step_token, load_token = listener.set(listeners.on_step), load_listener.set(listeners.on_load)
    began_token = began.set(stopping.BEGAN)
    try:
        return stopping.run(start())
    finally:
        listener.reset(step_token)
        load_listener.reset(load_token)
        began.reset(began_token)
