"""A real browser for tests, and what a person reads, clicks and types there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
# Where pictures of the pages are kept for people to look at; empty: nowhere.
SCREENSHOTS = os.environ.get("REGIONAL_SCREENSHOTS")


@contextmanager
def opened_browser(profile: Path, *arguments: str) -> Generator[webdriver.Chrome]:
    """Chromium with a profile folder of its own."""
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
        f"--user-data-dir={profile}",
        *arguments,
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def eventually(event: str, find: Callable[[], Any], seconds: float = 120) -> Any:
    """What `find` returns once that is something."""
    deadline = time.monotonic() + seconds
    while not (result := find()):
        assert time.monotonic() < deadline, f"waited in vain: {event}"
        time.sleep(0.3)
    return result


class Page:
    """The page that is open, as a person reads it."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    @property
    def text(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").text

    @property
    def console(self) -> str:
        """What the browser reported since the last look: requests that failed, with their status, and errors."""
        return "\n".join(entry["message"] for entry in self.browser.get_log("browser"))

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
        # Whole, or with a remark in brackets: one label may begin as another does.
        condition = f"normalize-space(.)='{label}' or starts-with(normalize-space(.), '{label} (')"
        path = (
            f"//*[self::label or self::div or self::span][{condition}]/following::*[self::textarea or self::input][1]"
        )

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

    def log_in(self, ui: str, auth_string: str) -> None:
        """Type the auth string where Prefect's UI asks for it."""
        self.open(f"{ui}/v2/dashboard", "Login")
        field = eventually("the password", lambda: self.browser.find_elements(By.XPATH, "//input[@type='password']"))[0]
        field.send_keys(auth_string, Keys.ENTER)
        self.says("Dashboard")
