"""What a person sees, in a real browser: from the form to the picture, and a schedule that fires."""

from __future__ import annotations

import base64
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.machine import ENDS, Machine
from tests.processes import post

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("machine"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
# Where pictures of the pages are kept for people to look at; empty: nowhere.
SCREENSHOTS = os.environ.get("REGIONAL_SCREENSHOTS")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    machine = Machine(folder, REGIONAL_STORE=str(folder / "store"), REGIONAL_OUT=str(folder / "out"))
    try:
        machine.up()
        yield machine
    finally:
        machine.up("--down")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1300,4600",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    opened = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield opened
    finally:
        opened.quit()


def deployment(machine: Machine, name: str) -> dict[str, Any]:
    (found,) = post(machine.api, "deployments/filter", {"deployments": {"name": {"any_": [name]}}})
    return found


def eventually(what: str, find: Callable[[], Any], seconds: float = 120) -> Any:
    """What `find` returns once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.3)
    return found


class Page:
    """The page that is open, as a person reads it."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    @property
    def text(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").text

    def open(self, url: str, words: str) -> None:
        """Open a page that says these words; again where a busy server left it empty."""
        for _ in range(4):
            self.browser.get(url)
            with suppress(AssertionError):
                return self.says(words, 45)
        raise AssertionError(f"{url} does not say {words!r}:\n{self.text[:3000]}")

    def says(self, words: str, seconds: float = 120) -> None:
        eventually(f"{words!r} on the page", lambda: words in self.text, seconds)

    def click(self, kinds: str, words: str) -> None:
        path = " | ".join(f"//{kind}[normalize-space(.)='{words}']" for kind in kinds.split())
        eventually(f"{words!r} to click", lambda: self.browser.find_elements(By.XPATH, path))[0].click()

    def fill(self, label: str, value: str, number: int = 0) -> None:
        """Put a value into the field after the label; of several labels, that number."""
        named = f"contains(normalize-space(.), '{label}') and string-length(normalize-space(.)) < 30"
        path = f"//*[self::label or self::div or self::span][{named}]/following::*[self::textarea or self::input][1]"

        def filled() -> bool:
            """The page may be drawn anew while a slow machine types."""
            fields: list[WebElement] = self.browser.find_elements(By.XPATH, path)
            if len(fields) <= number:
                return False
            with suppress(WebDriverException):
                if fields[number].get_attribute("value") == value:
                    return True
                fields[number].click()
                fields[number].send_keys(Keys.CONTROL, "a")
                fields[number].send_keys(value)
            return False

        eventually(f"{label} to be filled", filled)

    def keep(self, name: str) -> None:
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(f"{SCREENSHOTS}/{name}.png")


def shown_pictures(browser: webdriver.Chrome) -> list[Image.Image]:
    """The pictures on the page that came as data, decoded as the browser got them."""
    sources = [image.get_attribute("src") or "" for image in browser.find_elements(By.TAG_NAME, "img")]
    data = [source.partition(",")[2] for source in sources if source.startswith("data:image/jpeg")]
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in data]


def submitted(page: Page, machine: Machine) -> str:
    """The id of the run that the form makes; it may want to be told twice."""
    runs = {"deployments": {"name": {"any_": ["render"]}}, "sort": "EXPECTED_START_TIME_ASC"}
    for _ in range(4):
        page.click("button", "Submit")
        with suppress(AssertionError):
            return eventually("the run", lambda: post(machine.api, "flow_runs/filter", runs), 30)[0]["id"]
    page.keep("not-submitted")
    raise AssertionError(f"the form makes no run:\n{page.text[:6000]}")


def test_from_the_form_to_the_picture(machine: Machine, browser: webdriver.Chrome) -> None:
    page, ui = Page(browser), machine.api.removesuffix("/api")
    # The form explains itself: titles, and what the fields mean.
    form = f"{ui}/deployments/deployment/{deployment(machine, 'render')['id']}/run"
    page.open(form, "What the canvas shows outside the regions")
    page.click("button", "Add item")
    # Only when the new region is drawn is the first "Ellipse" on the page its mask's.
    page.says("What this region shows")
    time.sleep(1)
    page.click("button", "Ellipse")
    time.sleep(1)
    page.fill("Prompt", "a red background")
    page.fill("Prompt", "a blue background", 1)
    for label, value in (
        ("Centre, from left", "0.5"),
        ("Centre, from top", "0.5"),
        ("Radius across", "0.35"),
        ("Radius down", "0.35"),
    ):
        page.fill(label, value)
    page.keep("form")
    run_id = submitted(page, machine)
    ended = machine.completed(run_id, seconds=400)
    assert ended["name"].startswith("render")

    page.open(f"{ui}/runs/flow-run/{run_id}", "Completed")
    page.keep("run")
    artifacts = post(machine.api, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    by_key = {artifact["key"]: artifact for artifact in artifacts}
    assert {"plan", "progress", "picture", "summary"} <= by_key.keys()
    assert by_key["progress"]["data"] == 100
    page.open(f"{ui}/artifacts/artifact/{by_key['picture']['id']}", "a blue background")
    (picture,) = eventually("the picture", lambda: shown_pictures(browser))
    page.keep("picture")
    # Blue in the middle, red at the corner, as the form said.
    assert max(range(3), key=picture.getpixel((64, 64)).__getitem__) == 2
    assert max(range(3), key=picture.getpixel((6, 6)).__getitem__) == 0


def test_a_schedule_fires_and_renders(machine: Machine, browser: webdriver.Chrome) -> None:
    """An interval of a few seconds on the deployment `recurring`; its run is seen to be complete."""
    found = deployment(machine, "recurring")
    job = {"prompt": "a green background", "steps": 4, "width": 64, "height": 64}
    schedule = {"interval": 20, "anchor_date": "2026-01-01T00:00:00Z"}
    parameters = {"job": job, "seed": "by run", "prompts": ["a green background", "a red background"]}
    body = [{"active": True, "schedule": schedule, "parameters": parameters, "max_scheduled_runs": 1}]
    created = post(machine.api, f"deployments/{found['id']}/schedules", body)
    runs = {"flow_runs": {"deployment_id": {"any_": [found["id"]]}, "state": {"type": {"any_": list(ENDS)}}}}
    try:
        ended = eventually("a scheduled run", lambda: post(machine.api, "flow_runs/filter", runs), 300)
    finally:
        machine.delete(f"deployments/{found['id']}/schedules/{created[0]['id']}")
    assert ended[0]["state_type"] == "COMPLETED", ended[0]["state"]["message"]
    assert ended[0]["auto_scheduled"]
    page = Page(browser)
    page.open(f"{machine.api.removesuffix('/api')}/runs/flow-run/{ended[0]['id']}", "Completed")
    page.keep("scheduled")
