"""The command `regional top`: what the workers of a Prefect server do now, and what waits."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from prefect_regional_diffusion.flows.cli import stopping
from prefect_regional_diffusion.flows.cli.calling import client_of_server
from prefect_regional_diffusion.flows.cli.options import AsJson
from prefect_regional_diffusion.flows.cli.pool_tables import pool_tables
from prefect_regional_diffusion.sampling_core.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_regional_diffusion.flows.queueing.overview import Overview, PoolOverview

_PAUSE_SECONDS = 2.0


def top(
    pool: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Work pool; may be repeated. Default: all that have workers or runs."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is drawn where on the server at PREFECT_API_URL, and what waits, in the order of its turns.

    In a terminal it is renewed every two seconds, until Ctrl-C; elsewhere it is printed once, with all runs.
    """
    stopping.say(lambda: "stopped; the runs go on")
    stopping.run(_show(pool or [], as_json))


async def _show(names: Sequence[str], as_json: bool) -> None:
    async with client_of_server() as client:
        from prefect_regional_diffusion.flows.queueing.overview import Overview

        overview, console = Overview(client), Console()
        pools = await _pools(overview, names)
        if as_json:
            print(json.dumps({"pools": [as_data(pool) for pool in pools]}))
        elif console.is_terminal:
            await _renew(overview, names, pools, console)
        else:
            console.print(pool_tables(pools, console.width))


async def _pools(overview: Overview, names: Sequence[str]) -> list[PoolOverview]:
    from prefect.exceptions import ObjectNotFound

    try:
        return await overview.pools(names)
    except ObjectNotFound as error:
        raise BadInput("--pool", ", ".join(names), "work pools that the server has") from error


async def _renew(overview: Overview, names: Sequence[str], pools: list[PoolOverview], console: Console) -> None:
    """Show the pools until the command is stopped."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        stopping.before_last_words(live.stop)
        while True:
            live.update(pool_tables(pools, console.width, console.height), refresh=True)
            await asyncio.sleep(_PAUSE_SECONDS)
            pools = await _pools(overview, names)


def as_data(pool: PoolOverview) -> dict[str, Any]:
    """A pool as `--json` prints it; times are seconds."""
    data = pool._asdict()
    for part in ("at_work", "waiting"):
        data[part] = [run._asdict() | {"id": str(run.id)} for run in data[part]]
    return data
