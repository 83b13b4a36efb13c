"""Hostile names and prompts on the pages of Prefect's UI, in a real browser: it makes no link of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from tests.browsing import Page, eventually, needs_browser, opened_browser
from tests.forked import run
from tests.processes import environment, post, regional

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.xdist_group("server"), needs_browser]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with opened_browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


PIXEL = "![x](https://evil.example/track.png)"
LINK = "[click](https://evil.example/a) <https://evil.example/b> https://evil.example/c www.evil.example"
HTML = "<img src='https://evil.example/d.png' onerror='document.title=1'><a href='//evil.example'>e</a>"


def foreign(browser: webdriver.Chrome) -> list[str]:
    """Attributes of the page that lead elsewhere: what it has fetched, or would when somebody clicks."""
    script = """
        const found = [...document.querySelectorAll('*')].flatMap((element) => [...element.attributes])
            .filter((attribute) => ['src', 'href', 'srcset', 'style', 'poster', 'action'].includes(attribute.name))
            .map((attribute) => attribute.value)
        return found.concat(performance.getEntriesByType('resource').map((entry) => entry.name))
    """
    return [value for value in browser.execute_script(script) if "evil" in value]


def opened(browser: webdriver.Chrome, server: str, artifact: dict[str, Any], words: str) -> Page:
    page = Page(browser)
    page.open(f"{server.removesuffix('/api')}/artifacts/artifact/{artifact['id']}", words)
    return page


def test_a_page_of_a_hostile_run_fetches_nothing(server: str, tmp_path: Path, browser: webdriver.Chrome) -> None:
    shape = {"x": 0, "y": 0, "width": 0.5, "height": 1}
    regions = [{"name": f"|{text}"[:80], "prompt": text, "mask": shape} for text in (PIXEL, LINK, HTML, f"`{PIXEL}`")]
    job = {"prompt": f"{PIXEL} {LINK} {HTML}", "steps": 1, "width": 64, "height": 64, "regions": regions}
    (tmp_path / "job.json").write_text(json.dumps(job))
    # Of two slashes in a path one is left; from a page over HTTP that is an address as well.
    out = tmp_path / f"x`{PIXEL}"
    env = environment(tmp_path / "home", server)
    command = regional("render", "job.json", "--json", "--out", out)
    done = run(command, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    newest = post(server, "artifacts/filter", {"sort": "CREATED_DESC", "limit": 10})
    by_key = {artifact["key"]: artifact for artifact in reversed(newest)}
    for key in ("summary", "picture"):
        page = opened(browser, server, by_key[key], "evaluations in")
        eventually("the path", lambda page=page: "pictures:" in page.text)
        assert "click" in page.text
        assert foreign(browser) == []

    # And so that this test can fail: the same text as Markdown.
    raw = post(server, "artifacts/", {"key": "raw", "type": "markdown", "data": f"raw text `x`{PIXEL} {LINK}"})
    opened(browser, server, raw, "raw text")
    assert len(eventually("the picture", lambda: foreign(browser))) > 1
