"""Prompts in artifacts: whatever somebody writes there, people read text and click nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from prefect_regional_diffusion.tasks.ui.markdown import cell

GITHUB = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
# What Prefect's UI makes links of, in text that has been decoded (mdast-util-gfm-autolink-literal).
AUTOLINKS = [r"https?://[-.\w]+", r"www\.[-.\w]+", r"[-.\w+]+@[-\w]+(\.[-\w]+)+"]


def shown(prompt: str) -> list[Token]:
    """What a prompt becomes in a table's cell, which must still be the first of two."""
    row = GITHUB.parse(f"| a | b |\n| --- | --- |\n| {cell(prompt)} | last |")
    cells = [token for token in row if token.type == "inline"]
    assert [cell.content for cell in cells[:2]] == ["a", "b"]
    assert len(cells) == 4
    assert cells[3].content == "last"
    return cells[2].children or []


@given(st.text(st.sampled_from("aw.:/@\\|[]()!*_~`<>&#;-+=\"' \n"), max_size=40))
@example("![x](https://evil.example/track.png)")
@example("[click](javascript:alert(1))")
@example("see https://evil.example, WWW.evil.example and me@evil.example")
@example("https&#58;//evil.example")
@example("**bold** _thin_ ~~gone~~ `code` <b>tag</b> &lt;b&gt; <https://evil.example>")
@example("a | b \\| c \\")
@example("[^1] [ ] [x]")
def test_a_prompt_stays_text(prompt: str) -> None:
    parts = shown(prompt)
    assert {part.type for part in parts} <= {"text", "text_special"}
    text = "".join(part.content for part in parts)
    assert text.replace("\u2060", "").strip() == " ".join(prompt.split()).replace("`", "'")
    assert not [link for link in AUTOLINKS if re.search(link, text, re.IGNORECASE)]


@pytest.mark.parametrize("prompt", ["https://evil.example/a.png", "www.evil.example", "me@evil.example", "ftp://evil"])
def test_nothing_in_the_source_is_an_address_either(prompt: str) -> None:
    """Prefect's older UI looks for addresses before it decodes."""
    assert not re.search(r"[a-z]://|www\.|[\w.+-]@", cell(prompt))
