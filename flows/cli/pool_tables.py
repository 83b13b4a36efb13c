"""Work pools as tables for a terminal: what is drawn where, and what waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prefect_regional_diffusion.flows.cli.printing import cell
from prefect_regional_diffusion.flows.queueing.durations import estimated, measured

if TYPE_CHECKING:
    from prefect_regional_diffusion.flows.queueing.overview import PoolOverview, RunAtWork, RunThatWaits

_NARROW = 80
"""Columns of a terminal in which nothing has more room than it needs."""
_FRAME = 5
"""Lines of a pool beside its runs: its name, the headings of two tables, what is not shown, a blank."""
_FEWEST = 2
"""Runs of a pool that are shown, however low the terminal is."""


def pool_tables(pools: Sequence[PoolOverview], width: int, lines: int | None = None) -> RenderableType:
    """Pools, one below the other: in about so many lines, or with all of their runs."""
    if not pools:
        return Text("No work pool has workers or runs.")
    parts, left = list[RenderableType](), lines
    for number, pool in enumerate(pools):
        rows = None
        if left is not None:
            # What one pool does not need is there for the next.
            rows = max(left // (len(pools) - number) - _FRAME, _FEWEST)
            left -= _FRAME + min(rows, len(pool.at_work) + len(pool.waiting))
        parts += _pool(pool, width, rows)
    return Group(*parts[:-1])


def _pool(pool: PoolOverview, width: int, rows: int | None) -> list[RenderableType]:
    """A pool with so many of its runs, and a blank line."""
    at_work, waiting = pool.at_work, pool.waiting
    if rows is not None:
        # Of what waits, one at least is shown: who is next.
        at_work = at_work[: rows - bool(waiting)]
        waiting = waiting[: rows - len(at_work)]
    parts: list[RenderableType] = [_title(pool)]
    if at_work:
        parts.append(_at_work(at_work, width))
    if waiting:
        parts.append(_waiting(waiting, width))
    hidden = [
        f"{len(every) - len(shown)} more {verb}"
        for every, shown, verb in ((pool.at_work, at_work, "at work"), (pool.waiting, waiting, "that wait"))
        if len(every) > len(shown)
    ]
    if hidden:
        parts.append(Text(f"  and {', '.join(hidden)}", style="dim"))
    return [*parts, Text("")]


def _title(pool: PoolOverview) -> Text:
    number = len(pool.workers)
    workers = "no worker is there" if not number else f"{number} worker{'s' * (number > 1)}"
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append(cell(pool.name).plain, "bold")
    title.append(f": {workers}, {len(pool.at_work)} at work, {len(pool.waiting)} waiting")
    if pool.is_paused:
        title.append(", paused", "yellow")
    return title


def _table(width: int, first: str | None, *headings: tuple[str, int]) -> Table:
    """A table over the whole width, in which the run's name has what other columns leave."""
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True, header_style="dim")
    if first:
        table.add_column(first, justify="right", no_wrap=True)
    table.add_column("Run", ratio=1, min_width=8, no_wrap=True, overflow="ellipsis")
    for heading, room in headings:
        table.add_column(heading, max_width=room + max(width - _NARROW, 0) // 4, no_wrap=True, overflow="ellipsis")
    return table


def _at_work(runs: Sequence[RunAtWork], width: int) -> Table:
    table = _table(width, None, ("Owner", 10), ("Model", 14), ("Worker", 12), ("Step", 10), ("For", 7))
    for run in runs:
        table.add_row(*map(cell, (run.name, run.owner, _models(run), run.worker, _step(run), measured(run.seconds))))
    return table


def _waiting(runs: Sequence[RunThatWaits], width: int) -> Table:
    table = _table(width, "Place", ("Owner", 10), ("Model", 14), ("Begins in", 9), ("Waits", 7))
    for run in runs:
        begins = "" if run.seconds_left is None else estimated(run.seconds_left)
        table.add_row(str(run.place), *map(cell, (run.name, run.owner, _models(run), begins, measured(run.seconds))))
    return table


def _models(run: RunAtWork | RunThatWaits) -> str:
    """The first model, by the last part of its path, and how many more there are."""
    if not run.models:
        return ""
    name = run.models[0].rstrip("/").rpartition("/")[2]
    return name if len(run.models) == 1 else f"{name} +{len(run.models) - 1}"


def _step(run: RunAtWork) -> str:
    if run.state != "Running":
        return run.state
    return f"{run.steps[0]}/{run.steps[1]}" if run.steps else run.progress
