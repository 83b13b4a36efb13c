"""What others wrote, in Markdown: it stays text, whatever it says. Prefect's UI makes links, pictures and HTML of the
rest, and a picture is fetched by whoever looks at the page.
"""

from __future__ import annotations

import re

from prefect_regional_diffusion.sampling_core.text.plain_text import one_line, redacted

_MOST_CELL = 500
_MOST_CODE = 1000
_MARKS = re.compile(r"([\\|\[\]!*_~])")
_LINKS = re.compile(r"(://|(?<=www)\.|@)", re.IGNORECASE)


def cell(text: str) -> str:
    """Text that stays inside one cell of a table, or one sentence: no links, pictures, emphasis or HTML."""
    flat = one_line(text, _MOST_CELL).replace("&", "&amp;").replace("<", "&lt;").replace("`", "'")
    # Addresses become links by themselves, also when they are spelled with entities; a word joiner, which nobody
    # sees, keeps them apart.
    return _LINKS.sub(r"&#8288;\1", _MARKS.sub(r"\\\1", flat)) or " "


def code(text: str) -> str:
    """A path or URL as code, outside of tables: nothing in it means anything but the sign that would end it."""
    return f"`{one_line(redacted(text), _MOST_CODE).replace('`', chr(39)) or ' '}`"
