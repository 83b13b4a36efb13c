"""Lines and tables' cells on a terminal. Rich takes brackets for markup and colons for emoji, but not in a `Text`."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from prefect_regional_diffusion.sampling_core.text.plain_text import one_line, plain, plain_path

_MOST_LINE = 1000
_MOST_PATH = 4096
"""As long as a path can be: it is copied and piped."""
_MOST_CELL = 200


def say(
    text: object, *, style: str = "", stderr: bool = False, indent: str = "", console: Console | None = None
) -> None:
    """Print one line, without markup, however long the terminal's lines are; above the bar that a console shows."""
    _print(indent + plain(text, _MOST_LINE), style, console or Console(stderr=stderr))


def say_path(path: str) -> None:
    """Print the path or URL of a file that was made."""
    _print(plain_path(path, _MOST_PATH), "", Console())


def cell(text: object) -> Text:
    """A table's cell in one line; where it has no room, its end is cut off."""
    return Text(one_line(text, _MOST_CELL), no_wrap=True, overflow="ellipsis")


def evaluations_in_words(evaluations: int, canvases: float) -> str:
    """How many evaluations (network rows), and where windows make them less work, what they are of the whole canvas."""
    work = f", the work of {canvases:.4g} of the canvas," if canvases < evaluations else ""
    return f"{evaluations} evaluations{work}"


def _print(text: str, style: str, console: Console) -> None:
    console.print(Text(text, style=style), soft_wrap=True)
