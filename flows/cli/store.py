"""The command `regional store`: what a store holds, and what of it can go."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from prefect_regional_diffusion.flows.cli.options import AsJson
from prefect_regional_diffusion.flows.cli.printing import cell
from prefect_regional_diffusion.flows.common.environment import trust_the_caller
from prefect_regional_diffusion.sampling_core.errors import BadInput, StoreError

if TYPE_CHECKING:
    from prefect_regional_diffusion.tasks.storage.store import Store

app = typer.Typer(help="Look at a store of latents, and throw away what is not needed.", no_args_is_help=True)

Url = Annotated[
    str | None, typer.Option("--store", metavar="URL", help="Folder or fsspec URL. Default: .regional/store.")
]
_POLICIES = "final, branch_points, all, none, or a number"


@app.command()
def ls(store: Url = None, as_json: AsJson = False) -> None:
    """List the runs that a store knows of. States that runs have in common count for each of them."""
    from prefect_regional_diffusion.tasks.runtime.retention import runs

    entries = runs(_open(store))
    if as_json:
        print(json.dumps([entry.run.model_dump(mode="json") | _counts(entry) for entry in entries]))
        return
    # In 80 columns a run is one line: all but the name are short, and of a long name the end is cut off.
    table = Table("Name", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("Job", "Begun (UTC)", "Done", "Steps", "States", "Size"):
        table.add_column(heading, no_wrap=True)
    for entry in entries:
        run = entry.run
        finished = "yes" if run.finished else "no"
        cells = (run.job_hash[:8], _date(run.begun), finished, run.steps, entry.states, _size(entry.size))
        table.add_row(*map(cell, (run.name, *cells)))
    Console().print(table)


@app.command()
def du(store: Url = None, as_json: AsJson = False) -> None:
    """Say how much a store holds of what."""
    from prefect_regional_diffusion.tasks.runtime.retention import sizes

    totals = sizes(_open(store))
    if as_json:
        print(json.dumps({kind: {"objects": number, "bytes": size} for kind, (number, size) in totals.items()}))
        return
    table = Table("Kind", "Objects", "Size")
    for kind, (number, size) in totals.items():
        table.add_row(kind, str(number), _size(size))
    table.add_row("all", str(sum(n for n, _ in totals.values())), _size(sum(s for _, s in totals.values())))
    Console().print(table)


@app.command()
def prune(
    store: Url = None,
    keep: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="What stays of finished runs: `final` states, `branch_points` (also those where other jobs "
            "can go on), `all`, every n-th (a number), or `none`: then also masks, prompts, init images and pictures "
            "go. Files that are not the store's own always stay.",
        ),
    ] = "branch_points",
    older_than: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="Only what was finished or left longer ago than this.")
    ] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Throw away states that need not stay: of finished runs by policy, of abandoned ones all."""
    from prefect_regional_diffusion.tasks.runtime.retention import DAY, to_prune

    target = _open(store)
    objects = to_prune(target, _policy(keep), older_than * DAY)
    if not dry_run:
        target.remove(entry.key for entry in objects if entry.key is not None)
    size = sum(entry.size for entry in objects)
    if as_json:
        print(json.dumps({"removed": not dry_run, "objects": len(objects), "bytes": size}))
        return
    Console().print(f"{'Would remove' if dry_run else 'Removed'} {len(objects)} objects, {_size(size)}.")


def _open(url: str | None) -> Store:
    trust_the_caller()
    from prefect_regional_diffusion.tasks.inputs.path_policy import store_place
    from prefect_regional_diffusion.tasks.storage.store import Store

    store = Store(store_place(url))
    if not store.exists():
        raise StoreError("store", store.url, "does not exist")
    return store


def _policy(text: str) -> Any:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    if text not in {"final", "branch_points", "all", "none"}:
        raise BadInput("--keep", text, _POLICIES)
    return text


def _counts(entry: Any) -> dict[str, int]:
    return {"states": entry.states, "bytes": entry.size}


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
