"""Brings models to this machine before a job asks for them:
`python -m prefect_regional_diffusion.deployments.prefetch NAME...`

A name is what a job's `model` may be: of the catalog, of a bucket, of the Hugging Face hub. It is fetched as runs do
it: compared, where it is here, with the SHA-256 that it was fetched with; gone on with after an interruption; and
others that fetch the same wait.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from rich.console import Console

from prefect_regional_diffusion.flows.cli.printing import say
from prefect_regional_diffusion.flows.common.environment import set_defaults, trust_the_caller
from prefect_regional_diffusion.sampling_core.errors import BadInput, RegionalError
from prefect_regional_diffusion.sampling_core.text.plain_text import plain

_REFUSED, _INTERRUPTED = 2, 130
"""Exit codes: at least one model could not be fetched; Ctrl-C."""
_OWN_LOGGERS = "prefect_regional_diffusion"


def wanted(names: Sequence[str]) -> list[str]:
    """The names, each once; without any, those of the catalog. Raises BadInput if that has none either."""
    from prefect_regional_diffusion.tasks.machine.model_catalog import catalog

    found = list(dict.fromkeys(names or catalog().models))
    if not found:
        raise BadInput("NAME", None, "names of models, or a catalog with some (REGIONAL_CATALOG_BLOCK)")
    return found


def prefetch(name: str) -> str:
    """The place of a model on this machine, once it is there. Raises BadInput or ModelError."""
    from prefect_regional_diffusion.tasks.inputs.model_cards import card_files, is_card
    from prefect_regional_diffusion.tasks.inputs.model_names import find_model

    place = find_model("model", name).place
    if is_card(place):
        card_files("model", place)
    return place


@contextmanager
def _told() -> Generator[None]:
    """Within the block, a bar on stderr says how far each model is; where that is no terminal, lines as it begins and
    ends."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from prefect_regional_diffusion.tasks.storage.fetch_progress import fetch_listener

    console = Console(stderr=True)
    if not console.is_terminal:
        handler, logger = logging.StreamHandler(), logging.getLogger(_OWN_LOGGERS)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def show(url: str, done: int, total: int) -> None:
            if url not in bars:
                bars[url] = progress.add_task(plain(url, 60), total=total)
            progress.update(bars[url], completed=done)

        token = fetch_listener.set(show)
        try:
            yield
        finally:
            fetch_listener.reset(token)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m prefect_regional_diffusion.deployments.prefetch",
        description="Bring models to this machine before a job asks for them.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="of a model, as a job has it [all of the catalog that is configured]"
    )
    typed: list[str] = parser.parse_args().names
    set_defaults()
    # Whoever types this asks for a download.
    os.environ.setdefault("REGIONAL_HUB_DOWNLOADS", "true")
    code = 0
    try:
        trust_the_caller()
        names = wanted(typed)
        with _told():
            for name in names:
                try:
                    say(f"{name}: {prefetch(name)}")
                except RegionalError as error:
                    say(error, stderr=True)
                    code = _REFUSED
    except RegionalError as error:
        say(error, stderr=True)
        code = _REFUSED
    except KeyboardInterrupt:
        say("stopped; the same command goes on", stderr=True)
        code = _INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
