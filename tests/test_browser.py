"""What a person sees, in a real browser: from the form to the picture, and a schedule that fires."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.browsing import Page, eventually, needs_browser, opened_browser
from tests.machine import ENDS, Machine
from tests.processes import post

pytestmark = [
    pytest.mark.browser,
    pytest.mark.e2e,
    pytest.mark.xdist_group("machine"),
    pytest.mark.timeout(900),
    needs_browser,
]


@pytest.fixture(scope="module")
def browser(shared_machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser whose user has logged in."""
    with opened_browser(tmp_path_factory.mktemp("chromium")) as opened:
        shared_machine.ensure_up()
        Page(opened).log_in(shared_machine.ui, shared_machine.auth_string)
        yield opened


def shown_pictures(browser: webdriver.Chrome) -> list[Image.Image]:
    """The pictures on the page that came as data, decoded as the browser got them."""
    sources = [image.get_attribute("src") or "" for image in browser.find_elements(By.TAG_NAME, "img")]
    data = [source.partition(",")[2] for source in sources if source.startswith("data:image/jpeg")]
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in data]


def submitted(page: Page, machine: Machine, name: str = "render") -> str:
    """The id of the run that the form makes; it may want to be told twice."""
    before = {run["id"] for run in machine.runs_of(name)}
    for _ in range(4):
        page.click("button", "Submit")
        with suppress(AssertionError):
            return eventually("the run", lambda: {run["id"] for run in machine.runs_of(name)} - before, 30).pop()
    page.keep("not-submitted")
    raise AssertionError(f"the form makes no run:\n{page.console}\n{page.text}")


def test_from_the_form_to_the_picture(machine: Machine, browser: webdriver.Chrome) -> None:
    page, ui = Page(browser), machine.ui
    # The form explains itself: titles, and what the fields mean.
    form = f"{ui}/deployments/deployment/{machine.deployment('render')['id']}/run"
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


def test_the_form_of_the_original_nodes_draws_an_example(machine: Machine, browser: webdriver.Chrome) -> None:
    page = Page(browser)
    page.open(f"{machine.ui}/deployments/deployment/{machine.deployment('original-node')['id']}/run", "Original node")
    # Each node has a tab with its own inputs; nothing else is filled in.
    page.says("Second seed mode")
    page.click("button", "TwoSamplersForMask")
    page.says("Seed inside the mask")
    assert "Second seed mode" not in page.text
    time.sleep(1)
    page.keep("original-node")
    run_id = submitted(page, machine, "original-node")
    job = machine.completed(run_id, seconds=400)["parameters"]["job"]
    assert job["node"] == {"name": "TwoSamplersForMask", "mask_seed": None, "mask_steps": None, "mask_denoise": None}
    artifacts = post(machine.api, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    (picture_id,) = [artifact["id"] for artifact in artifacts if artifact["key"] == "picture"]
    page.open(f"{machine.ui}/artifacts/artifact/{picture_id}", "a yellow background")
    (picture,) = eventually("the picture", lambda: shown_pictures(browser))
    # Yellow on the right, and on the left the region's black.
    assert min(picture.getpixel((120, 8))[:2]) > 128 > max(picture.getpixel((8, 8)))


def test_a_schedule_fires_and_renders(machine: Machine, browser: webdriver.Chrome) -> None:
    """An interval of a few seconds on the deployment `recurring`; its run is seen to be complete."""
    found = machine.deployment("recurring")
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
    page.open(f"{machine.ui}/runs/flow-run/{ended[0]['id']}", "Completed")
    page.keep("scheduled")
