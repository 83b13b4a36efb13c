"""What became of a picture, told by a real server: as events, and to a webhook."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed

from prefect_regional_diffusion.flows.queueing.run_states import TAG
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.storage.signed_urls import signed_urls
from tests import forked, s3
from tests.on_server import on_server_at
from tests.processes import post, prefect_server, regional

SET_UP = """
import sys
from prefect_regional_diffusion.deployments.automations import main
sys.argv[1:] = ["--webhook", sys.argv[1]]
main()
"""
REFUSED = """
import asyncio
from prefect_regional_diffusion.flows.render import render
asyncio.run(render({"prompt": "x", "model": "nowhere"}, name="refused"))
"""
REAP = """
import asyncio
from prefect_regional_diffusion.flows.reap import reap
print(asyncio.run(reap(crashed_seconds=30, restarts=0)))
"""
JOB = {"prompt": "a blue background", "width": 64, "height": 64, "steps": 2}


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address, and what is posted to it."""
    posted = list[dict[str, Any]]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - its name in the base class

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/pictures", posted
        server.shutdown()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of this test's own: pictures of other tests are no business of its webhook."""
    (tmp_path / "server").mkdir()
    with prefect_server(tmp_path / "server") as api:
        yield api


def events(server: str) -> list[dict[str, Any]]:
    """All that a server was told of pictures."""
    return post(server, "events/filter", {"filter": {"event": {"prefix": ["regional.picture."]}}})["events"]


def wait_until(holds: Callable[[], bool]) -> None:
    """Or until two minutes have gone by: what is looked at next then fails."""
    deadline = time.monotonic() + 120
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.5)


@pytest.mark.e2e
def test_each_picture_is_told_to_a_webhook(
    tmp_path: Path, env: dict[str, str], server: str, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    address, posted = hook
    for _ in range(2):  # the second time, nothing is made twice
        forked.run([sys.executable, "-c", SET_UP, address], cwd=tmp_path, env=env).check_returncode()
    (tmp_path / "job.json").write_text(json.dumps(JOB))
    drawn = forked.run(regional("render", "job.json", "--json"), cwd=tmp_path, env=env)
    record = json.loads(drawn.stdout)
    # The command line refuses such a job before there is a run.
    refused = forked.run([sys.executable, "-c", REFUSED], cwd=tmp_path, env=env)
    assert refused.returncode

    wait_until(lambda: len(events(server)) >= 2 and len(posted) >= 2)
    told_here = sorted(event["event"] for event in events(server))
    assert told_here == ["regional.picture.failed", "regional.picture.finished"]
    told = {message["event"].rpartition(".")[2]: message["picture"] for message in posted}
    assert len(posted) == 2
    finished, failed = told["finished"], told["failed"]
    assert finished["job_hash"] == record["job_hash"]
    assert finished["name"] == "job"
    assert finished["images"] == record["images"]
    assert finished["urls"] == []
    assert {name: finished[name] for name in ("evaluations", "forwards", "seconds")} == {
        name: record[name] for name in ("evaluations", "forwards", "seconds")
    }
    assert (failed["job_hash"], failed["name"]) == ("unknown", "refused")
    assert "nowhere" in failed["reason"]


@pytest.mark.e2e
def test_a_run_that_the_reaper_gives_up_is_told_once(tmp_path: Path, env: dict[str, str], server: str) -> None:
    crashed = list[FlowRun]()

    async def crash(client: PrefectClient, deployment: UUID, _pool: str) -> None:
        run = await client.create_flow_run_from_deployment(deployment, parameters={"name": "lost"}, tags=[TAG])
        await client.set_flow_run_state(run.id, Crashed(), force=True)
        crashed.append(run)

    on_server_at(server)(crash)
    time.sleep(30.5)  # the reaper believes no younger crash
    for given_up in (1, 0):
        reaped = forked.run([sys.executable, "-c", REAP], cwd=tmp_path, env=env)
        assert f"'give up': {given_up}," in reaped.stdout, reaped.stderr
    wait_until(lambda: bool(events(server)))
    (event,) = events(server)
    assert event["event"] == "regional.picture.given-up"
    assert event["resource"]["prefect.resource.id"] == "regional.picture.unknown"
    assert event["payload"] == {"job_hash": "unknown", "name": "lost", "flow_run": str(crashed[0].id)}


@pytest.mark.e2e
def test_a_picture_in_a_bucket_has_an_address_for_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with s3.s3_server(tmp_path, "pictures") as port:
        endpoint = f"http://127.0.0.1:{port}"
        s3.client(endpoint).put_object(Bucket="pictures", Key="a b.png", Body=b"picture")
        for name, value in {"ENDPOINT": endpoint, "KEY": s3.KEY, "SECRET": s3.SECRET}.items():
            monkeypatch.setenv(f"REGIONAL_S3_{name}", value)
        places = ["s3://pictures/a b.png", str(tmp_path / "a.png")]
        assert signed_urls(places) == []
        monkeypatch.setenv("REGIONAL_SIGNED_URL_HOURS", "2")
        settings.cache_clear()
        (url,) = signed_urls(places)
        assert s3.SECRET not in url
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.read() == b"picture"
